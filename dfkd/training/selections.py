"""Stored images for training: selections, opened and checked with their teacher, and the order of their images."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dfkd.config import DistillConfig, ModelConfig
from dfkd.config.stages.shared import Input
from dfkd.config.tables import differences
from dfkd.data.images.frame import Crops
from dfkd.formats.shards import Shards
from dfkd.models.ensemble import LEARNED, Ensemble
from dfkd.models.learned_mixing import IMAGES, learn_weights
from dfkd.models.load import Model
from dfkd.models.own import GivenModel
from dfkd.models.several import load_classifier
from dfkd.models.state import tensors_of
from dfkd.system.components import Kind
from dfkd.system.console import say
from dfkd.system.device import Place, resolve_place
from dfkd.system.errors import RequestError
from dfkd.system.remote_folder import folder_of
from dfkd.system.spacing import evenly_spaced
from dfkd.training import sampling
from dfkd.training.sources import Source
from dfkd.training.stored import Resident, ShardSource

ORDER = Kind("order of batches", (sampling.__name__,), given=("stored", "batch", "seed"), failure="failed")
"""Components that `--batches` names."""
RESIDENT_SHARE = 0.5
"""Largest share of a GPU's free memory for images. The rest is for the networks."""


def open_selections(samples: Sequence[str], normalize: str | None, image_size: int | None) -> list[Shards]:
    """Open the selections of `--samples`. Raises: RequestError if they cannot be mixed, or if one is empty."""
    selections = [Shards(folder_of(folder)) for folder in samples]
    for shards, name in zip(selections, samples, strict=True):
        first = selections[0].manifest
        firsts, own = (manifest.content.preprocess.normalize for manifest in (first, shards.manifest))
        if own != firsts and normalize is None:
            raise RequestError(
                f"--samples {name} was selected with --normalize {own}, {samples[0]} with {firsts}; "
                "give --normalize as the teacher expects it"
            )
        if (shards.manifest.classes, shards.manifest.image) != (first.classes, first.image):
            raise RequestError(f"--samples {name} has other images or classes than {samples[0]}: they cannot be mixed")
        if len(shards) == 0:
            raise RequestError(f"--samples {name} is empty")
    size = selections[0].manifest.image.size if selections else image_size
    if image_size not in (None, size):
        raise RequestError(f"--image-size {image_size} is not the selection's {size}; select again with it")
    return selections


def open_teacher(
    teacher: GivenModel,
    samples: Sequence[str],
    selections: Sequence[Shards],
    config: ModelConfig,
) -> Model:
    """Open the teacher with the input of the selections, unless an option says otherwise.

    Raises: RequestError for other classes or channels than those of the selections. Another teacher is only noted.
    """
    if not selections:
        return _finite(load_classifier(teacher, config.input))
    first = selections[0].manifest
    image, made_with = first.image, first.content.preprocess.normalize
    # generated images have the size of the input: they tell nothing about photographs
    photos = (shards.manifest for shards in selections if shards.manifest.source == "selection")
    seen = next((vars(manifest.content.preprocess.frame) for manifest in photos), {})
    input = config.input.over(Input(made_with, image.size, **seen))
    model = _finite(load_classifier(teacher, input, learns=True))
    if model.normalize != made_with:
        flag = f"--normalize {config.normalize}"
        say(f"note: the teacher is used with {flag}, and {samples[0]} was selected with {made_with}")
    if (model.classes, model.channels) != (first.classes, image.channels):
        raise RequestError(
            f"--teacher has {model.classes} classes and {model.channels} channels, the selection was made for "
            f"{first.classes} and {image.channels}"
        )
    for shards, name in zip(selections, samples, strict=True):
        if differences(shards.manifest.content.teacher.table, model.fingerprint()):
            say(f"note: {name} was selected with another teacher ({shards.manifest.teacher})")
    if isinstance(model.module, Ensemble) and model.module.mixing == LEARNED:
        device = resolve_place(config.device, config.precision).device
        learn_weights(model, pieces(selections, IMAGES), Place(device, torch.float32))
    return model


_AT_ONCE = 256
"""Images that `pieces` reads at a time."""


def pieces(selections: Sequence[Shards], most: int) -> Iterator[UInt8[Tensor, "b h w c"]]:
    """Yield batches of images, evenly spaced over the selections, about `most` of them in total."""
    images = sum(map(len, selections))
    for shards in selections:
        rows = evenly_spaced(len(shards), max(1, round(most * len(shards) / images)))
        for start in range(0, len(rows), _AT_ONCE):
            yield torch.from_numpy(shards.pixels(rows[start : start + _AT_ONCE]))


def _finite(teacher: Model) -> Model:
    """Return the teacher. Raises: RequestError if its weights are not finite, before a student's loss is blamed."""
    for name, value in tensors_of(teacher.module).items():
        if value.is_floating_point() and not value.isfinite().all():
            raise RequestError(f"--teacher {teacher.spec} has weights that are not finite ({name})")
    return teacher


def stored_images(
    config: DistillConfig, selections: Sequence[Shards], place: Place, crops: Crops | None = None
) -> list[ShardSource]:
    """Return the selections as one source, or as one source each if they have weights.

    With `crops`, images are random windows of their files, other ones at every read. Otherwise pixels stay on a GPU
    after their first use, within `RESIDENT_SHARE` of its free memory.
    """
    groups = [[s] for s in selections] if config.weights and len(selections) > 1 else [selections] if selections else []
    room = 0  # in main memory the shards are memory-mapped already
    if place.device.type == "cuda":
        room = int(RESIDENT_SHARE * torch.cuda.mem_get_info(place.device)[0])
    stored: list[ShardSource] = []
    for group in groups:
        image, images = group[0].manifest.image, sum(map(len, group))
        size = images * image.size**2 * image.channels
        kept = size <= room and crops is None
        resident = Resident(images, image.size, image.channels, place.device) if kept else None
        room -= size if resident is not None else 0
        stored.append(ShardSource(group, _order(config, group), resident, crops))
    return stored


def real_images(selections: Sequence[Shards], seed: int, crops: Crops | None = None) -> Source | None:
    """Return the images of the selections in their own order, for a generator that also learns from images."""
    if not selections:
        return None
    return ShardSource(selections, sampling.ShuffledOrder(sum(map(len, selections)), seed + 1), crops=crops)


def _order(config: DistillConfig, selections: Sequence[Shards]) -> sampling.Order:
    """Build the order of images that `--batches` names."""
    stored = sampling.Stored(
        sum(map(len, selections)), lambda column: np.concatenate([shards.column(column) for shards in selections])
    )
    component = ORDER.choose(config.batches)
    order = component.build(stored=stored, batch=config.batch_size, seed=config.seed)
    if not isinstance(order, sampling.Order):
        what = f"{ORDER.name} {component.name} gives a {type(order).__name__}"
        raise RequestError(f"{what}, which has no rows(position, count)")
    return order
