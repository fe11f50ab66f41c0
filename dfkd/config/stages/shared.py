"""Options and help texts that several stages share."""

from dataclasses import dataclass, replace
from typing import Literal

from dfkd.config.option import Checked, option

Interpolation = Literal["bilinear", "bicubic"]
Precision = Literal["auto", "bf16", "fp32"]
Logger = Literal["tensorboard", "wandb", "mlflow", "pictures"]
Mixing = Literal["mean-logits", "mean-probabilities", "confidence", "entropy", "learned"]
Engine = Literal["local", "ray"]
Decoder = Literal["cpu", "nvjpeg"]

MODEL = "MODEL: NAME[:key=value,...][@WEIGHTS], a RUN folder or a .pt2 file."
CLASSES = (
    "FILE with the names of the model's classes, one per line in its order, or JSON. The class folders of {} are found "
    "in it by name. Default: the names that the model has, such as a RUN with --classes. Else names "
    "that are whole numbers are the labels; others count in sorted order if they are as many as the model's classes."
)
BITS = (
    "Bits in use (such as 12) of 16-bit gray images in {}. The upper 8 of these are taken. Default: "
    "the files' own number, else 16."
)
TEACHER = f"{MODEL} Several, or a FILE.toml that lists them, act as one teacher (docs/teaching.md)."
MIXING = (
    "How the outputs of several teachers are combined: the mean of their logits or of their probabilities, or the "
    "probabilities weighted by confidence or by entropy. learned: weights for each class, estimated on --samples. "
    "Default: mean-logits."
)
SHARD_TEACHER = (
    "With several processes (torchrun): divide the teacher's parameters among them (FSDP). Each block is gathered "
    "while it runs. For a teacher that does not fit into one GPU."
)
DECODER = (
    "nvjpeg, above 64 pixels: decode JPEG files on the GPU. Pixels differ by a few levels from those of cpu, and so do "
    "scores and students."
)
PRECISION = "auto: bfloat16 autocast where the hardware supports it and a short probe finds it faster, else float32."
CLASS_DROPPING = "Store a mask with each image: the classes whose probability is at least this value. 0: all classes."
LOG = "Also log to tensorboard, wandb or mlflow, or write pictures (docs/reference.md#logs)."
OWN_TAPS = "Positions of the features, such as last=fc:input. Default: found by running the network."


@dataclass(frozen=True)
class Input:
    """How images become a network's input: the options of these names. None stands for what the model itself states."""

    normalize: str | None = None
    image_size: int | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None

    def over(self, other: "Input") -> "Input":
        """Return these values, and those of `other` for values that are None."""
        return replace(other, **{name: value for name, value in vars(self).items() if value is not None})


AS_STATED = Input()
"""The input that the model itself states."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """Options of every stage that uses a model."""

    preset: str | None = option(
        "NAME or FILE.toml of options. A flag overrides the preset, the preset overrides the default.",
        "machine",
        default=None,
        role="none",
        shown=False,
        stored=False,
    )
    device: str = option(
        "auto, cpu, cuda or cuda:N.", "machine", default="auto", role="none", machine=True, shown=False
    )
    precision: Precision = option(
        PRECISION,
        "machine",
        default="auto",
        role="resolved",
        machine=True,
        shown=False,
    )
    seed: int = option(
        "Random seed. The same seed gives the same result.", "machine", default=0, least=0, below=2**63, shown=False
    )
    normalize: str | None = option(
        "Normalization of the input images: imagenet, cifar10, none or mean,mean,mean/std,std,std. Default: the "
        "model's own (RUN, .pt2, timm, torchvision's weights), else imagenet.",
        "models",
        default=None,
        role="resolved",
    )
    image_size: int | None = option(
        "Side of the input images in pixels. Default: the model's own, else the size of the images.",
        "models",
        default=None,
        least=1,
        role="resolved",
    )
    crop_pct: float | None = option(
        "Images are resized so that their shorter side is the image size divided by this ratio, then cropped at "
        "the center. Default: above 64 pixels the model's own (RUN, .pt2, timm, torchvision's weights), else 1.",
        "models",
        default=None,
        above=0,
        most=1,
        role="resolved",
        stored=False,
    )
    interpolation: Interpolation | None = option(
        "How images are resized: bilinear or bicubic, with antialiasing. Default: above 64 pixels the model's own, "
        "else bilinear.",
        "models",
        default=None,
        role="resolved",
        stored=False,
    )

    @property
    def input(self) -> Input:
        """The input that these options give. An empty text gives no normalization."""
        return Input(self.normalize or None, self.image_size, self.crop_pct, self.interpolation)
