"""What every stage can be asked: one frozen dataclass a stage, TOML presets, and the comparison of two requests.

The text under a field is its help on the command line. Nothing heavy is imported here: `--help` must be quick.
"""

import math
import operator
from dataclasses import dataclass
from typing import Literal

from dfkd.errors import RequestError

Precision = Literal["auto", "bf16", "fp32"]

RANGES = {
    **dict.fromkeys(("count", "image_size", "batch_size", "epochs", "steps", "seeds"), "at least 1"),
    **dict.fromkeys(("checkpoint_every", "log_every"), "at least 1"),
    **dict.fromkeys(("lr", "weight_decay", "mixup", "cutmix"), "at least 0"),
    **dict.fromkeys(("crop_padding", "reestimate", "teacher_views"), "at least 0"),
    "seed": "at least 0 and below 9223372036854775808",
    **dict.fromkeys(("gamma", "deduplicate", "crop_area"), "above 0 and at most 1"),
    **dict.fromkeys(("class_dropping", "warmup", "ema"), "at least 0 and below 1"),
    "max_unreadable": "at least 0 and at most 1",
    "weights": "above 0",
}
"""What the numbers of all stages may be, in the words in which a wrong one is refused."""

_BOUNDS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


class Checked:
    """A configuration that refuses numbers out of range, whether they come from a flag, a preset or a pipeline."""

    def __post_init__(self) -> None:
        for name, words in RANGES.items():
            given = getattr(self, name, None)
            bounds = [bound.rsplit(" ", 1) for bound in words.split(" and ")]
            for value in given if isinstance(given, tuple) else (() if given is None else (given,)):
                if not math.isfinite(value) or not all(_BOUNDS[side](value, float(limit)) for side, limit in bounds):
                    raise RequestError(f"--{name.replace('_', '-')} {value} is not {words}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """What every stage that uses a model can be told."""

    preset: str | None = None
    """NAME or FILE.toml of options; a flag beats the preset, the preset beats the default."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "auto"
    """auto: bfloat16 autocast where the hardware multiplies it and it is faster (a probe, once), else float32."""
    seed: int = 0
    """The same seed gives the same result."""
    normalize: str | None = None
    """imagenet, cifar10, none or m,m,m/s,s,s: what the teacher expects. Default: as its RUN says, else imagenet."""
    image_size: int | None = None
    """Side of the teacher's input in pixels. Default: what is known of the model, else the images' own size."""


@dataclass(frozen=True, kw_only=True)
class SelectConfig(ModelConfig):
    """Select from an unlabeled pool what this teacher can teach from."""

    teacher: str
    """MODEL: NAME[:key=value,...][@WEIGHTS], a RUN folder or a .pt2 file."""
    pool: tuple[str, ...]
    """DATA: folders, .npz, .parquet, .arrow, .tar, hf:REPO, torchvision:NAME. Labels are never read."""
    out: str
    """The selection's folder."""
    method: str = "threshold"
    """threshold, random, confidence, entropy, or a function of your own by its dotted name; NAME:key=value,..."""
    count: int | None = None
    """Images to select. Default: half of the pool, or all that the method admits if that is less."""
    gamma: float = 0.7
    """Share of the pool that the threshold admits (0 to 1), the surest first: lower leaves more of the unsure out."""
    class_dropping: float = 0.05
    """The mask that is stored: classes to which the teacher gives at least this probability are kept; 0 keeps all."""
    balance: Literal["none", "class", "cluster"] | None = None
    """Pick evenly over the predicted classes, or over clusters of the teacher's features. Default: class with the
    threshold, else none."""
    deduplicate: float | None = None
    """Drop images whose features are at least so similar (cosine, such as 0.99) to a better one. Default: keep all.
    Here and for clusters, the features of all admitted images are held in memory."""
    teacher_taps: tuple[str, ...] = ()
    """Where the features for that are taken, by hand: last=fc:input."""
    part: str | None = None
    """K/N: only score the K-th of N shares of the pool, into the cache. For several machines that see one DFKD_CACHE;
    the same command without it then selects."""
    filter: str = "auto"
    """What the images go through first: none; fitted, a linear filter with which they are like the teacher's own to its
    BatchNorm layers, if the teacher is surer of them then; blur:sigma=0.5; or a function of your own, with dots.
    auto: fitted where the teacher has such layers, up to 64 pixels and from 512 images on."""
    max_unreadable: float = 0.01
    """Stop when more than this share of the pool cannot be read."""
    batch_size: int = 256
    """Images a teacher forward; it decides the scores' last bits, so that another size scores anew."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(ModelConfig):
    """Make images from the teacher alone, where there is no pool."""

    teacher: str
    """MODEL: NAME[:key=value,...][@WEIGHTS], a RUN folder or a .pt2 file."""
    method: str
    """dafl, deepinversion, ... (docs/generators.md), or a class of your own by its dotted name; NAME:key=value,..."""
    out: str
    """The folder of the images: a selection like any other."""
    count: int | None = None
    """Images to make. Default: 10000, or with --fill as many as are missing."""
    steps: int | None = None
    """Steps of the method. Default: its own."""
    student: str | None = None
    """MODEL with weights, such as a RUN: for methods that look for what a student does not know yet."""
    samples: tuple[str, ...] = ()
    """Selection folders, for methods that learn from real images too."""
    teacher_taps: tuple[str, ...] = ()
    """Where a method's features are taken, by hand: last=fc:input."""
    fill: str | None = None
    """A selection: make images only of the classes of which it has too few, until it would be even."""
    class_dropping: float = 0.05
    """The mask that is stored: classes to which the teacher gives at least this probability are kept; 0 keeps all."""
    batch_size: int = 128
    """Images a step of the method."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between rows of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(ModelConfig):
    """Train a student on selected images; the teacher answers for every view that the student sees."""

    teacher: str
    """MODEL: NAME[:key=value,...][@WEIGHTS], a RUN folder or a .pt2 file."""
    student: str
    """MODEL; its class count and channels default to the teacher's."""
    init: Literal["auto", "none", "teacher"] = "auto"
    """teacher: the student begins with the teacher's layers of the same names, with some of their channels where it is
    narrower, and fitted on --samples to give what they do. auto: so where all of the student's layers are such and
    it brings no weights of its own; else none, random weights."""
    samples: tuple[str, ...] = ()
    """Selection folders; several are mixed."""
    out: str
    """The run's folder."""
    source: str | None = None
    """A generator that learns along with the student: NAME[:key=value,...] of docs/generators.md, or a class of your
    own, with dots. With --samples both are mixed."""
    weights: tuple[float, ...] = ()
    """Shares of the batch, one for each of --samples and then --source. Default: --samples by size, --source half."""
    epochs: int | None = None
    """Passes over the samples, instead of --steps."""
    steps: int | None = None
    """Optimizer steps. Default: 4000."""
    test: str | None = None
    """Labeled DATA for the accuracy of the last step; training never sees it."""
    loss: tuple[str, ...] = ()
    """NAME[:WEIGHT,key=value,...] summed: those of docs/losses.md, or a class or function of your own, with dots.
    Default: kd ofd (docs/results.md says why); kd alone above 64 pixels, for a network without feature maps of several
    resolutions, with --source and with --teacher-views."""
    class_dropping: float = 0.0
    """Drop the teacher's classes below this probability, on the view that is trained on; 0 (measured best): none."""
    batch_size: int = 128
    """Images a step."""
    batches: str = "shuffled"
    """shuffled; or each batch even over the teacher's classes, classes:each=8, or clusters, superclasses:count=16; or
    after a first pass the images on which the student is farthest from the teacher, hardest:share=0.5."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd has Nesterov momentum 0.9."""
    lr: float | None = None
    """Peak learning rate. Default: 0.002 for adamw; for sgd 0.4, or 0.1 where the student begins with the teacher's
    layers, or 0.02 without BatchNorm."""
    weight_decay: float = 5e-4
    """Weight decay; not applied to biases and normalization layers."""
    schedule: Literal["onecycle", "cosine"] = "onecycle"
    """onecycle rises over 30 % of the steps, cosine over 5 %; both then fall to zero along a cosine."""
    warmup: float | None = None
    """Share of the steps over which the learning rate rises, if not the schedule's own."""
    crop_padding: int | None = None
    """Random crop after padding by so many pixels; 0: none. Default: an eighth of the image size."""
    crop_area: float = 1.0
    """Random window of this share of the image's area to all of it, enlarged to its size, such as 0.4; 1: none. It
    softens the images: that cost points wherever the pool was filtered, or needed no filter."""
    flip: bool = True
    """Random horizontal flip."""
    mixup: float = 0.0
    """Mixup's Beta(a, a) parameter; 0: none."""
    cutmix: float = 0.0
    """CutMix's Beta(a, a) parameter; 0: none. With --mixup, each image takes one of the two."""
    teacher_views: int = 0
    """Train on so many fixed views of every image, whose answers by the teacher are kept in the cache: no teacher runs
    in training, and other seeds and losses on the outputs find them there. 0: a new view every time."""
    ema: float = 0.0
    """The student is the moving average of its weights with this decay, such as 0.99; 0: the last step's weights."""
    reestimate: int = 0
    """Batches over which the final student's BatchNorm statistics are computed anew; 0: those of training."""
    teacher_taps: tuple[str, ...] = ()
    """Where features are taken, by hand: first=bn1 last=fc:input."""
    student_taps: tuple[str, ...] = ()
    """The same for the student."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between rows of metrics.jsonl."""
    name: str | None = None
    """The row in `dfkd compare`; runs of one name are its seeds. Default: made from the method and the losses."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ModelConfig):
    """Measure a model on labeled data."""

    model: str
    """MODEL: NAME[:key=value,...][@WEIGHTS], a RUN folder or a .pt2 file."""
    data: str
    """Labeled DATA."""
    teacher: str | None = None
    """MODEL to agree with."""
    json: str | None = None
    """File for the figures; they are printed in any case."""
    batch_size: int = 256
    """Images a forward."""
    precision: Precision = "fp32"
    """auto, bf16 or fp32."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show what is in a selection: counts, scores, a gallery."""

    folder: str
    """A selection's folder; with --verify also a run's or a pipeline's."""
    out: str | None = None
    """FILE.html with the scores and a gallery."""
    verify: bool = False
    """Instead, read every file again and compare it with the checksums that were written with it."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Put runs side by side: mean and standard deviation over seeds."""

    runs: tuple[str, ...]
    """RUN folders."""
    out: str
    """FILE.html; FILE.csv is written beside it."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ModelConfig):
    """Write a model as one file for another program."""

    model: str
    """MODEL: NAME[:key=value,...][@WEIGHTS], a RUN folder or a .pt2 file."""
    format: Literal["onnx", "pt2", "safetensors"] | None = None
    """Default: by the file's suffix. onnx needs pip install '.[onnx]'."""
    out: str
    """The file."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Run a whole pipeline: selections, distillations, seeds, comparison; what is done is not done again."""

    file: str
    """FILE.toml."""
    out: str | None = None
    """The pipeline's folder, instead of the file's own `out`."""
    only: tuple[str, ...] = ()
    """Rows to run, with the selections that they need, instead of all; the report has every row that is complete."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Checked):
    """The whole thing on images that come with scikit-learn, offline, in a few minutes."""

    out: str = "demo"
    """Folder for everything that the demo writes."""
    seeds: int = 3
    """Seeds a method."""
    steps: int = 400
    """Optimizer steps a run."""
