"""CLIP as a classifier: an image is compared with a text about each class."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dfkd.data.labels import ClassNames
from dfkd.models.expected import UNKNOWN, Expected, from_notes
from dfkd.system.console import say
from dfkd.system.errors import RequestError, nearest, reason
from dfkd.system.files import user_path

PROMPT = "a photo of a {}."
_FOLDER, _HUB = "local-dir:", "hf-hub:"


class ZeroShot(nn.Module):
    """A zero-shot classifier: CLIP's image encoder, and a linear layer of text embeddings.

    Learning Transferable Visual Models From Natural Language Supervision, https://arxiv.org/abs/2103.00020. The logit
    of a class is s <v, t>. s is CLIP's learned scale, and v the image embedding, normalized. t is the normalized mean
    of the normalized embeddings of the class's texts. The text embeddings are the weight of the last layer, and the
    text encoder is not kept. Images of another size are resized to the model's. Embeddings are compared in float32. s
    is about 100, and logits from 16 to 32 have steps of 0.125 in bfloat16.
    """

    brings_weights = True
    """Whether the constructor reads the weights itself, without a file after an @."""

    def __init__(self, visual: nn.Module, texts: Float[Tensor, "classes width"], scale: float, size: int) -> None:
        """Build the classifier. `texts` are the vectors t, and `size` is the side of the images in pixels."""
        super().__init__()
        self.visual, self._size = visual, size
        self.head = nn.Linear(texts.shape[1], len(texts), bias=False)
        self.head.weight.data.copy_(scale * texts)
        self.expected: Expected = UNKNOWN

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits of a normalized batch."""
        if images.shape[-1] != self._size:
            images = F.interpolate(images, size=(self._size, self._size), mode="bicubic", antialias=True)
        embedded = self.visual(images)
        if not torch.is_autocast_enabled(images.device.type):  # an exported program has no autocast context
            return self._compared(embedded)
        with torch.autocast(images.device.type, enabled=False):
            return self._compared(embedded.float())

    def _compared(self, embedded: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        logits: Tensor = self.head(F.normalize(embedded, dim=1))
        return logits


def clip(names: str, model: str = "ViT-B-32", weights: str = "laion2b_s34b_b79k", templates: str = PROMPT) -> ZeroShot:
    """Build CLIP as a classifier of the classes that a FILE `names`, through the library open_clip.

    `model` is a name that open_clip knows, a folder that open_clip has written, or `hf-hub:OWNER/NAME`. The last two
    have their own weights. `weights` is a tag of the model, which is downloaded, or a file. `templates` is a text with
    {} for the name of a class, a FILE with one such text per line, or `simple` or `imagenet`: the 7 and the 80 of
    CLIP's authors. BatchNorm layers are frozen, because their statistics are those of CLIP's own images.
    Raises: RequestError if open_clip, a file or a name is missing.
    """
    try:
        import open_clip
        from open_clip.utils import freeze_batch_norm_2d
    except ImportError:
        raise RequestError("model clip needs open_clip: pip install '.[clip]' in the checkout of dfkd") from None
    listed, texts = ClassNames(names, "names="), _templates(templates, open_clip)
    source, pretrained = _source(model, weights, open_clip)
    network = open_clip.create_model(source, pretrained=pretrained).eval()
    spelled = [name.replace("_", " ") for name in listed.names]
    ask = open_clip.get_tokenizer(source)
    directions = open_clip.build_zero_shot_classifier(network, ask, spelled, texts).T.float()
    side = network.visual.image_size
    size = side if isinstance(side, int) else side[0]
    made = ZeroShot(freeze_batch_norm_2d(network.visual), directions, network.logit_scale.exp().item(), size)
    said = open_clip.get_model_preprocess_cfg(network)
    notes = {name: list(said[name]) for name in ("mean", "std")} | {"interpolation": said.get("interpolation")}
    made.expected = replace(from_notes(notes) or UNKNOWN, size=size, classes=listed.names, said_by="its weights say")
    say(
        f"clip: {listed.count} classes of {Path(names).name}, {len(texts)} texts for each; it has no BatchNorm "
        "statistics: select takes the threshold and fits no filter"
    )
    return made


def _templates(text: str, open_clip: Any) -> Sequence[Any]:
    """Return the templates of the texts about a class."""
    known = {"simple": "SIMPLE_IMAGENET_TEMPLATES", "imagenet": "OPENAI_IMAGENET_TEMPLATES"}
    if text in known:
        several: Sequence[Any] = getattr(open_clip, known[text])
        return several
    lines = [text]
    if "{}" not in text:
        try:
            lines = [line.strip() for line in user_path(text).read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, ValueError) as error:
            why = reason(error)
            raise RequestError(
                f"templates={text} cannot be read ({why}); give a text with {{}}, a FILE of such, simple or imagenet"
            ) from None
    lines = [line for line in lines if line]
    wrong = next((line for line in lines if line.count("{") != 1 or "{}" not in line or line.count("}") != 1), None)
    if wrong is not None or not lines:
        raise RequestError(f"templates={text} has {wrong or 'no line'!r}; a line has one {{}}, as in {PROMPT!r}")
    return lines


def _source(model: str, weights: str, open_clip: Any) -> tuple[str, str | None]:
    """Return the model and the weights for `open_clip.create_model`."""
    if model.startswith(_HUB):
        return model, None
    folder = user_path(model.removeprefix(_FOLDER))
    if folder.is_dir():
        return f"{_FOLDER}{folder}", None
    if model not in open_clip.list_models():
        raise RequestError(f"open_clip has no model={model}{nearest(model, open_clip.list_models())}")
    if user_path(weights).is_file():
        return model, str(user_path(weights))
    tags = open_clip.list_pretrained_tags_by_model(model)
    if weights not in tags:
        raise RequestError(f"weights={weights} is neither a file nor weights of {model}{nearest(weights, tags)}")
    return model, weights
