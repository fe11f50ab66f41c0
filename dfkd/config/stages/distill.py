"""Options of the stage `distill`."""

from dataclasses import dataclass
from typing import Literal

from dfkd.config.option import option
from dfkd.config.stages.shared import (
    BITS,
    CLASSES,
    DECODER,
    LOG,
    MIXING,
    OWN_TAPS,
    SHARD_TEACHER,
    TEACHER,
    Decoder,
    Logger,
    Mixing,
    ModelConfig,
)


@dataclass(frozen=True, kw_only=True)
class DistillConfig(ModelConfig):
    """Train a student on selected or generated images, with the teacher's answers as targets."""

    teacher: str | tuple[str, ...] = option(TEACHER, "models", role="resolved", reads="model")
    student: str = option(
        "MODEL. Its number of classes and channels defaults to the teacher's. --also names further students.",
        "models",
        role="resolved",
        reads="model",
    )
    mixing: Mixing | None = option(MIXING, "models", default=None, role="resolved")
    also: tuple[str, ...] = option(
        "Further students that learn from the same forward passes of the teacher. One text for each, with the options "
        "in which it differs: '--student lenet5 --loss kd rkd --out run-2' (docs/teaching.md). Each makes its own run.",
        "models",
        default=(),
        role="none",
        shown=False,
        stored=False,
        shared=False,
        off=(),
    )
    graft: int = option(
        "Steps between graftings: students of --also, all of one architecture, take filters from each other "
        "(docs/teaching.md). 0: none.",
        "models",
        default=0,
        least=0,
        off=0,
    )
    student_seed: int | None = option(
        "Seed of the student's random weights and of its own random numbers, such as dropout. Images and views depend "
        "on --seed. Default: --seed.",
        "models",
        default=None,
        least=0,
        below=2**63,
        off=None,
    )
    init: Literal["auto", "none", "teacher", "classifier"] = option(
        "teacher: copy the teacher's layers of the same names, take some of their channels where the student is "
        "narrower, and refit them on --samples. classifier: fit the student's last layer to the teacher's logits on "
        "--samples, by least squares. none: the student as it is given. auto: teacher if every layer of the student "
        "has such a layer and the student has no weights, classifier if the student's weights are of other classes, "
        "else none.",
        "models",
        default="auto",
        off="none",
        open=True,
    )
    prune: float | None = option(
        "Remove channels of the student before the training, until this share of its multiplications is left, such as "
        "0.25. The student needs weights, such as the teacher's own. Needs pip install '.[prune]'. Default: off.",
        "models",
        default=None,
        above=0,
        below=1,
        off=None,
    )
    quantize: Literal["int8"] | None = option(
        "int8: train the student with weights and inputs rounded to 8 bits, as dfkd export does for int8. "
        "The student needs weights, such as those of a RUN. Default: off.",
        "models",
        default=None,
        off=None,
    )
    specialists: int | None = option(
        "Number of specialists to add to a trained student, such as a RUN. Each begins as a copy of the student and "
        "learns a group of classes that the student confuses. The networks vote (docs/teaching.md). Default: none.",
        "models",
        default=None,
        least=2,
        off=None,
    )
    samples: tuple[str, ...] = option(
        "Selection folders. Several are mixed.", "data", default=(), role="resolved", reads="selection"
    )
    out: str = option("Folder of the run, or its URI in an object store.", "output", role="none", shown=False)
    source: str | None = option(
        "Generator that learns along with the student: NAME[:key=value,...] (docs/generators.md), or your own class "
        "by its dotted name. Mixed with --samples if both are given.",
        "data",
        default=None,
        role="resolved",
    )
    weights: tuple[float, ...] = option(
        "Shares of the batch, one for each of --samples and then --source. Default: --samples by size, --source half.",
        "data",
        default=(),
        above=0,
        role="resolved",
    )
    epochs: int | None = option(
        "Passes over the samples, instead of --steps.", "training", default=None, least=1, role="resolved"
    )
    steps: int | None = option("Optimizer steps. Default: 4000.", "training", default=None, least=1)
    test: str | None = option(
        "Labeled DATA for the accuracy after the last step. Training never reads it.",
        "data",
        default=None,
        role="none",
        reads="data",
    )
    classes: str | None = option(CLASSES.format("--test"), "data", default=None, role="none")
    bits: int | None = option(BITS.format("--test"), "data", default=None, least=8, most=16, role="none")
    loss: tuple[str, ...] = option(
        "Weighted sum of losses: NAME[:WEIGHT,key=value,...] (docs/losses.md), or your own class or function by its "
        "dotted name. Default: kd ofd for networks with feature maps of several resolutions, else kd; also kd with "
        "--source, --teacher-views, --quantize and --batchnorm kept, and above 64 pixels for a student with weights of "
        "its own.",
        "learning",
        default=(),
        role="resolved",
        open=True,
    )
    class_dropping: float = option(
        "Drop the teacher's classes below this probability in the training view. 0 drops none.",
        "learning",
        default=0.0,
        least=0,
        below=1,
    )
    batch_size: int = option("Images per step.", "training", default=128, least=1)
    batches: str = option(
        "Order of the images. shuffled. classes:each=8: several images of each predicted class in a batch. "
        "superclasses:count=16: the same for clusters of the teacher's logits. hardest:share=0.5: after a first pass, "
        "the images on which student and teacher differ most.",
        "training",
        default="shuffled",
    )
    optimizer: Literal["auto", "sgd", "adamw"] = option(
        "sgd uses Nesterov momentum 0.9. auto: adamw for a student with weights of its own if the images are above 64 "
        "pixels, and with --quantize, --specialists and --batchnorm kept; else sgd.",
        "training",
        default="auto",
        open=True,
    )
    lr: float | None = option(
        "Peak learning rate. Default for sgd: 0.4; 0.1 above 64 pixels, with depthwise convolutions, and with the "
        "teacher's layers or a fitted classifier; 0.02 without BatchNorm. Default for adamw: 0.002. Default for a "
        "student for which --optimizer auto chooses adamw: 0.0005; 0.0001 with --init classifier; 0.02 with sgd.",
        "training",
        default=None,
        least=0,
    )
    weight_decay: float = option(
        "Weight decay. Biases and normalization layers have none.", "training", default=5e-4, least=0
    )
    schedule: Literal["onecycle", "cosine"] = option(
        "onecycle warms up over 30 % of the steps, cosine over 5 %; both then decay to zero along a cosine.",
        "training",
        default="onecycle",
        role="resolved",
    )
    warmup: float | None = option(
        "Share of the steps for the warm-up. Default: that of the schedule.", "training", default=None, least=0, below=1
    )
    crop_padding: int | None = option(
        "Random crop after padding by this number of pixels. 0: no crop. Default: an eighth of the image size, or 0 "
        "above 64 pixels with --crop-area.",
        "augmentation",
        default=None,
        least=0,
    )
    crop_area: float | None = option(
        "Random resized crop: smallest share of the image's area, such as 0.4. 1: no such crop. Above 64 pixels the "
        "crop is taken from the whole file. Default: 0.35 there, or 0.1 with --init classifier, if there is no "
        "--source, --teacher-views or --crop-padding; else 1.",
        "augmentation",
        default=None,
        above=0,
        most=1,
        off=1.0,
        open=True,
    )
    flip: bool = option("Random horizontal flip.", "augmentation", default=True)
    color_jitter: float | None = option(
        "Random brightness, contrast and saturation: factors from 1 - X to 1 + X, such as 0.4. Default: off.",
        "augmentation",
        default=None,
        above=0,
        below=1,
        off=None,
    )
    mixup: float = option("Parameter a of Mixup's Beta(a, a). 0: off.", "augmentation", default=0.0, least=0)
    cutmix: float = option(
        "Parameter a of CutMix's Beta(a, a). 0: off. With --mixup, each image takes one of the two.",
        "augmentation",
        default=0.0,
        least=0,
        off=0.0,
    )
    teacher_views: int = option(
        "Train on this number of fixed views per image. The teacher is run on them once. Its outputs stay in the cache "
        "for other seeds and losses. 0: a new view in every step.",
        "augmentation",
        default=0,
        least=0,
        off=0,
    )
    ema: float = option(
        "Decay of the moving average of the weights that becomes the student, such as 0.99. 0: off.",
        "training",
        default=0.0,
        least=0,
        below=1,
        off=0.0,
    )
    batchnorm: Literal["auto", "batch", "kept"] = option(
        "Statistics by which the student's BatchNorm layers normalize in training. batch: those of the batch. kept: "
        "the student's own, which do not change. auto: kept for a student that --optimizer auto trains with adamw, "
        "else batch.",
        "training",
        default="auto",
        off="batch",
        open=True,
    )
    dropout: Literal["auto", "on", "off"] = option(
        "Dropout and stochastic depth of the student in training. off: its layers run in evaluation mode, except "
        "BatchNorm, for which --batchnorm decides. auto: off for a student that --optimizer auto trains with adamw, "
        "else on.",
        "training",
        default="auto",
        off="on",
        open=True,
    )
    reestimate: int | None = option(
        "Batches on which the final student's BatchNorm statistics are computed again. 0: off. Default: 20 if a "
        "BatchNorm layer of the student has a momentum below 0.05 (torchvision's MobileNetV3), else 0. Default with "
        "--batchnorm kept: 0.",
        "training",
        default=None,
        least=0,
        off=0,
        open=True,
    )
    sync_batchnorm: bool = option(
        "With several processes on GPUs (torchrun): the student's BatchNorm layers take the statistics of the whole "
        "batch. Default: those of the process's own images.",
        "machine",
        default=False,
        role="none",
        machine=True,
        shown=False,
        off=False,
    )
    shard_teacher: bool = option(
        SHARD_TEACHER, "machine", default=False, role="none", machine=True, shown=False, off=False
    )
    decoder: Decoder = option(DECODER, "machine", default="cpu", machine=True, off="cpu")
    teacher_taps: tuple[str, ...] = option(OWN_TAPS, "models", default=())
    student_taps: tuple[str, ...] = option("The same for the student.", "models", default=())
    checkpoint_every: int = option(
        "Steps between checkpoints.", "output", default=500, least=1, role="none", shown=False
    )
    keep_weights: int = option(
        "Keep the student's weights in OUT/weights: before the first step and at this number of evenly spread steps. "
        "dfkd explain shows from them when the student learned its visual concepts. 0: off.",
        "output",
        default=0,
        least=0,
        role="none",
        shown=False,
        stored=False,
        off=0,
    )
    log_every: int = option(
        "Steps between rows of metrics.jsonl.", "output", default=50, least=1, role="none", shown=False
    )
    log: tuple[Logger, ...] = option(
        LOG,
        "output",
        default=(),
        role="none",
        shown=False,
        stored=False,
    )
    name: str | None = option(
        "Name of the run's row in `dfkd compare`. Runs of one name are seeds of one row. Default: made from method and "
        "losses.",
        "output",
        default=None,
        role="none",
        shown=False,
    )
