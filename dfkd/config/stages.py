"""The options of every stage."""

from dataclasses import dataclass
from typing import Literal

from dfkd.config.option import Checked, option
from dfkd.system.limits import SHARE

Interpolation = Literal["bilinear", "bicubic"]
Precision = Literal["auto", "bf16", "fp32"]
Logger = Literal["tensorboard", "wandb", "mlflow"]
Mixing = Literal["mean-logits", "mean-probabilities", "confidence", "entropy"]
Engine = Literal["local", "ray"]

_MODEL = "MODEL: NAME[:key=value,...][@WEIGHTS], a RUN folder or a .pt2 file."
_CLASSES = (
    "FILE with the names of the model's classes, one per line in its order, or JSON. The class folders of {} are found "
    "in it by name. Default: names that are whole numbers are the labels; others count in sorted order if they are as "
    "many as the model's classes."
)
_BITS = (
    "Bits in use (such as 12) of the gray images with 16 bits in {}: of these the upper 8 are taken. Default: what the "
    "files say, else 16."
)
_TEACHER = f"{_MODEL} Several teach together; so does a FILE.toml that names several (docs/teaching.md)."
_MIXING = (
    "How several teachers answer as one: the mean of their logits or of their probabilities, or the probabilities "
    "weighted by confidence or by entropy. Default: mean-logits."
)
_OWN_TAPS = "Positions of the features, such as last=fc:input. Default: found by tracing the network."


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """What every stage that uses a model can be told."""

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
        "auto: bfloat16 autocast where the hardware supports it and a short probe finds it faster, else float32.",
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
        "Input normalization of the teacher: imagenet, cifar10, none or mean,mean,mean/std,std,std. Default: that of "
        "the RUN, else imagenet.",
        "models",
        default=None,
        role="resolved",
    )
    image_size: int | None = option(
        "Side of the teacher's input in pixels. Default: the model's own, else the size of the images.",
        "models",
        default=None,
        least=1,
        role="resolved",
    )
    crop_pct: float | None = option(
        "Photographs are resized so that their shorter side is the image size divided by this ratio, then cropped at "
        "the center. Default: above 64 pixels what the model says (RUN, timm, torchvision's weights), else 1.",
        "models",
        default=None,
        above=0,
        most=1,
        role="resolved",
        stored=False,
    )
    interpolation: Interpolation | None = option(
        "How photographs are resized: bilinear or bicubic, with antialiasing. Default: above 64 pixels what the model "
        "says, else bilinear.",
        "models",
        default=None,
        role="resolved",
        stored=False,
    )


@dataclass(frozen=True, kw_only=True)
class SelectConfig(ModelConfig):
    """Select from an unlabeled pool what this teacher can teach from."""

    teacher: str | tuple[str, ...] = option(_TEACHER, "models", role="resolved", stored=False, reads="model")
    mixing: Mixing | None = option(_MIXING, "models", default=None, role="resolved", stored=False)
    pool: tuple[str, ...] = option(
        "DATA: folders, .npz, .parquet, .arrow, .tar, hf:REPO, torchvision:NAME. Labels are never read.",
        "data",
        role="resolved",
        stored=False,
        reads="data",
    )
    out: str = option("Folder of the selection.", "output", role="none", shown=False, stored=False)
    method: str = option(
        "threshold, statistics, random, confidence, entropy, or your own function by its dotted name; "
        "NAME:key=value,... auto: statistics for a teacher with BatchNorm, unless --gamma is given; else threshold.",
        "selection",
        default="auto",
        open=True,
    )
    count: int | None = option(
        "Number of images to select. Default: half of the pool, or all that the method admits if fewer.",
        "selection",
        default=None,
        least=1,
    )
    gamma: float | None = option(
        "Keep the most confident fraction GAMMA of the pool (0 to 1). Default: the method's own, 0.7 for threshold.",
        "selection",
        default=None,
        range=SHARE,
    )
    class_dropping: float = option(
        "Stored mask: keep the classes whose probability is at least this value. 0 keeps all.",
        "selection",
        default=0.05,
        least=0,
        below=1,
    )
    balance: Literal["none", "class", "cluster"] | None = option(
        "Select evenly over the predicted classes, or over clusters of the teacher's features. Default: class for the "
        "threshold method, else none.",
        "selection",
        default=None,
    )
    deduplicate: float | None = option(
        "Drop an image whose features have at least this cosine similarity (such as 0.99) to a better image. "
        "Features of all admitted images are held in memory. Default: keep all.",
        "selection",
        default=None,
        above=0,
        most=1,
    )
    teacher_taps: tuple[str, ...] = option(_OWN_TAPS, "models", default=())
    part: str | None = option(
        "K/N: only score the K-th of N shares of the pool, into the shared cache DFKD_CACHE. slurm: the share of this "
        "task of an array job. The same command without --part then selects.",
        "machine",
        default=None,
        role="none",
        stored=False,
    )
    engine: Engine = option(
        "local: score in this process. ray: by workers of Ray, on the cluster that RAY_ADDRESS names, else on this "
        "machine. Needs pip install '.[ray]'.",
        "machine",
        default="local",
        role="none",
        machine=True,
        shown=False,
        stored=False,
    )
    workers: int | None = option(
        "Number of workers of Ray. Default: as many as there is room for.",
        "machine",
        default=None,
        least=1,
        role="none",
        machine=True,
        shown=False,
        stored=False,
    )
    gpus_per_worker: float | None = option(
        "GPUs that Ray reserves for each worker, such as 0.5. Default: 1 where scores are computed on a GPU, else 0.",
        "machine",
        default=None,
        least=0,
        role="none",
        machine=True,
        shown=False,
        stored=False,
    )
    filter: str = option(
        "Linear filter applied to the images first. fitted: matches the pool to the teacher's BatchNorm statistics, "
        "kept only if it raises the Inception Score. blur:sigma=0.5: Gaussian. none, or your own function by its "
        "dotted name. auto: fitted for a teacher with BatchNorm, up to 64 pixels and from 512 images on.",
        "selection",
        default="auto",
    )
    store: int | None = option(
        "Store photographs as JPEG files whose shorter side has this number of pixels, such as 256, unless they are "
        "smaller. distill then reads and decodes less. Default: the files as they are.",
        "output",
        default=None,
        least=1,
        stored=False,
    )
    max_unreadable: float = option(
        "Stop if more than this share of the pool cannot be read.", "data", default=0.01, least=0, most=1
    )
    bits: int | None = option(
        _BITS.format("--pool"), "data", default=None, least=8, most=16, role="resolved", stored=False
    )
    batch_size: int = option(
        "Images per teacher forward pass. Another size computes the scores anew.", "machine", default=256, least=1
    )


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(ModelConfig):
    """Make images from the teacher alone, where there is no pool."""

    teacher: str | tuple[str, ...] = option(_TEACHER, "models", role="resolved", stored=False, reads="model")
    mixing: Mixing | None = option(_MIXING, "models", default=None, role="resolved", stored=False)
    method: str = option(
        "dafl, deepinversion, ... (docs/generators.md), or your own class by its dotted name; NAME:key=value,...",
        "learning",
        shared=False,
    )
    out: str = option("Folder of the images, a selection.", "output", role="none", shown=False, stored=False)
    count: int | None = option(
        "Number of images to make. Default: 10000, or the number that --fill lacks.", "data", default=None, least=1
    )
    steps: int | None = option(
        "Steps of the method. Default: the method's own.", "training", default=None, least=1, shared=False
    )
    student: str | None = option(
        "MODEL with weights, such as a RUN, for methods that search for what a student does not know.",
        "models",
        default=None,
        role="resolved",
        stored=False,
        shared=False,
        reads="model",
    )
    samples: tuple[str, ...] = option(
        "Selection folders, for methods that also learn from real images.",
        "data",
        default=(),
        role="resolved",
        stored=False,
        shared=False,
        reads="selection",
    )
    teacher_taps: tuple[str, ...] = option(_OWN_TAPS, "models", default=())
    fill: str | None = option(
        "A selection: make only images of the classes that it lacks, until it is even.",
        "data",
        default=None,
        role="resolved",
        stored=False,
        reads="selection",
    )
    class_dropping: float = option(
        "Stored mask: keep the classes whose probability is at least this value. 0 keeps all.",
        "learning",
        default=0.05,
        least=0,
        below=1,
    )
    batch_size: int = option("Images per step of the method.", "training", default=128, least=1, shared=False)
    checkpoint_every: int = option("Steps between checkpoints.", "output", default=500, least=1, role="none")
    log_every: int = option("Steps between rows of metrics.jsonl.", "output", default=50, least=1, role="none")
    log: tuple[Logger, ...] = option(
        "Also log to tensorboard, wandb or mlflow (docs/reference.md#logs).",
        "output",
        default=(),
        role="none",
        shown=False,
        stored=False,
    )


@dataclass(frozen=True, kw_only=True)
class DistillConfig(ModelConfig):
    """Train a student on selected images; the teacher answers for every view that the student sees."""

    teacher: str | tuple[str, ...] = option(_TEACHER, "models", role="resolved", reads="model")
    student: str = option(
        "MODEL. The class count and channels default to the teacher's.", "models", role="resolved", reads="model"
    )
    mixing: Mixing | None = option(_MIXING, "models", default=None, role="resolved")
    also: tuple[str, ...] = option(
        "Further students that learn beside this one, for one answer of the teacher: for each the options in which it "
        "differs, such as '--student lenet5 --loss kd rkd --out run-2' (docs/teaching.md). Each is a run of its own.",
        "models",
        default=(),
        role="none",
        shown=False,
        stored=False,
        shared=False,
        off=(),
    )
    student_seed: int | None = option(
        "Seed of the student's random weights, and of what it draws itself. Images and views follow --seed. Default: "
        "--seed.",
        "models",
        default=None,
        least=0,
        below=2**63,
        off=None,
    )
    init: Literal["auto", "none", "teacher"] = option(
        "teacher: copy the teacher's layers of the same names, take some of their channels where the student is "
        "narrower, and refit them on --samples. none: random weights. auto: teacher if every layer of the student has "
        "such a layer and the student has no weights, else none.",
        "models",
        default="auto",
        off="none",
        open=True,
    )
    prune: float | None = option(
        "Share of its multiplications that the student keeps, such as 0.25: channels are left out, then it trains. It "
        "needs weights, such as the teacher's own. Needs pip install 'dfkd[prune]'. Default: all.",
        "models",
        default=None,
        above=0,
        below=1,
        off=None,
    )
    quantize: Literal["int8"] | None = option(
        "int8: train the student with weights and inputs rounded to 8 bits, as an export of dtype int8 does. "
        "It needs weights, such as those of a RUN. Default: off.",
        "models",
        default=None,
        off=None,
    )
    samples: tuple[str, ...] = option(
        "Selection folders. Several are mixed.", "data", default=(), role="resolved", reads="selection"
    )
    out: str = option("Folder of the run.", "output", role="none", shown=False)
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
        "Labeled DATA for the accuracy of the last step. Training never reads it.",
        "data",
        default=None,
        role="none",
        reads="data",
    )
    classes: str | None = option(_CLASSES.format("--test"), "data", default=None, role="none")
    bits: int | None = option(_BITS.format("--test"), "data", default=None, least=8, most=16, role="none")
    loss: tuple[str, ...] = option(
        "Weighted sum of losses: NAME[:WEIGHT,key=value,...] (docs/losses.md), or your own class or function by its "
        "dotted name. Default: kd ofd up to 64 pixels for networks with feature maps of several resolutions, else kd; "
        "also kd with --source and with --teacher-views.",
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
        "Order of the images. shuffled; classes:each=8: batches even over the teacher's classes; "
        "superclasses:count=16: over clusters of them; hardest:share=0.5: after a first pass, the images where student "
        "and teacher differ most.",
        "training",
        default="shuffled",
    )
    optimizer: Literal["auto", "sgd", "adamw"] = option(
        "sgd uses Nesterov momentum 0.9. auto: adamw if the student has weights of its own and the images are above 64 "
        "pixels or its classifier is new, else sgd.",
        "training",
        default="auto",
        open=True,
    )
    lr: float | None = option(
        "Peak learning rate. Default: for adamw 0.002, or 0.0005 where auto chose it; for sgd 0.4, 0.1 with the "
        "teacher's layers, or 0.02 without BatchNorm.",
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
        "with --crop-area of photographs.",
        "augmentation",
        default=None,
        least=0,
    )
    crop_area: float | None = option(
        "Random resized crop: smallest share of the image's area, such as 0.4. 1: no such crop. Above 64 pixels the "
        "crop is taken from the whole file. Default: 0.35 there, without --source, --teacher-views and --crop-padding; "
        "else 1.",
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
        "Train on this number of fixed views per image. The teacher answers them once, into the cache, where other "
        "seeds and losses find the answers. 0: a new view in every step.",
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
    reestimate: int = option(
        "Batches on which the final student's BatchNorm statistics are computed anew. 0: off.",
        "training",
        default=0,
        least=0,
        off=0,
    )
    sync_batchnorm: bool = option(
        "With several processes on GPUs (torchrun): the student's BatchNorm layers take the statistics of the whole "
        "batch. Otherwise those of the process's own images.",
        "machine",
        default=False,
        role="none",
        machine=True,
        shown=False,
        off=False,
    )
    teacher_taps: tuple[str, ...] = option(_OWN_TAPS, "models", default=())
    student_taps: tuple[str, ...] = option("The same for the student.", "models", default=())
    checkpoint_every: int = option(
        "Steps between checkpoints.", "output", default=500, least=1, role="none", shown=False
    )
    log_every: int = option(
        "Steps between rows of metrics.jsonl.", "output", default=50, least=1, role="none", shown=False
    )
    log: tuple[Logger, ...] = option(
        "Also log to tensorboard, wandb or mlflow (docs/reference.md#logs).",
        "output",
        default=(),
        role="none",
        shown=False,
        stored=False,
    )
    name: str | None = option(
        "Row of the run in `dfkd compare`. Runs of one name are its seeds. Default: made from method and losses.",
        "output",
        default=None,
        role="none",
        shown=False,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ModelConfig):
    """Measure a model on labeled data."""

    model: str = option(_MODEL, "models", reads="model")
    data: str = option("Labeled DATA.", "data", reads="data")
    classes: str | None = option(_CLASSES.format("--data"), "data", default=None)
    bits: int | None = option(_BITS.format("--data"), "data", default=None, least=8, most=16)
    teacher: str | None = option("MODEL to measure the agreement with.", "models", default=None, reads="model")
    json: str | None = option("FILE for the figures. They are printed in any case.", "output", default=None)
    batch_size: int = option("Images per forward pass.", "machine", default=256, least=1)
    precision: Precision = option("auto, bf16 or fp32.", "machine", default="fp32")


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(ModelConfig):
    """Show where a student and its teacher part, class by class and image by image, and what they look at."""

    model: str = option("The student: a RUN or another MODEL.", "models", reads="model")
    teacher: str | None = option(
        "MODEL of its teacher. Default: that of the RUN.", "models", default=None, reads="model"
    )
    data: str | None = option(
        "DATA, labeled or not. Default: the labeled data of the RUN (its --test).", "data", default=None, reads="data"
    )
    classes: str | None = option(_CLASSES.format("--data"), "data", default=None)
    bits: int | None = option(_BITS.format("--data"), "data", default=None, least=8, most=16)
    count: int = option("Images that the page shows of those on which they part.", "output", default=24, least=0)
    entropy: int = option(
        "Images of which pixel-wise entropies are learned (arXiv 2003.03622). Each takes some 200 passes forward and "
        "backward of both networks.",
        "output",
        default=0,
        least=0,
    )
    foreground: str | None = option(
        "FILE.npy or FILE.npz with one mask an image of DATA: nonzero where the object is. Visual concepts are then "
        "counted on it and beside it.",
        "data",
        default=None,
    )
    out: str = option("FILE.html. FILE.csv with a line for every image is written beside it.", "output")
    batch_size: int = option("Images per forward pass.", "machine", default=256, least=1)
    precision: Precision = option("auto, bf16 or fp32.", "machine", default="fp32")


@dataclass(frozen=True, kw_only=True)
class InspectConfig(Checked):
    """Show what is in a selection: counts, scores, a gallery."""

    folder: str = option(
        "Folder of a selection, or of a run whose student is a soft_tree; with --verify of any run or pipeline.",
        "data",
        positional=True,
    )
    out: str | None = option(
        "FILE.html with the scores and a gallery; of a soft_tree, with its filters.", "output", default=None
    )
    pool: tuple[str, ...] = option(
        "DATA that the selection was made from: the page also shows images that are out. For a soft_tree: images whose "
        "ways through the tree are shown.",
        "data",
        default=(),
        reads="data",
    )
    verify: bool = option("Read every file instead, and compare it with its checksum.", "output", default=False)


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Checked):
    """Put runs side by side: mean and standard deviation over seeds."""

    runs: tuple[str, ...] = option("RUN folders.", "data", positional=True)
    out: str = option("FILE.html. FILE.csv is written beside it.", "output")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ModelConfig):
    """Write a model as one file for another program."""

    model: str = option(_MODEL, "models", reads="model")
    format: Literal["onnx", "pt2", "safetensors"] | None = option(
        "Default: the suffix of the file. onnx needs pip install 'dfkd[onnx]'.", "output", default=None
    )
    out: str = option("The file.", "output")
    dtype: Literal["float32", "float16", "int8"] = option(
        "Numbers of the file. int8: convolutions and linear layers, calibrated on --samples; for .onnx and .pt2.",
        "output",
        default="float32",
    )
    with_normalize: bool = option(
        "Put the normalization into the file: its input are pixels in [0, 1].", "output", default=False
    )
    samples: str | None = option(
        "Selection folder. The file is checked against the model on some of its images. int8 is calibrated on others.",
        "data",
        default=None,
        reads="selection",
    )
    classes: str | None = option(
        "FILE with the names of the model's classes, which are stored in the exported file.", "data", default=None
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """Run a whole pipeline: selections, distillations, seeds, comparison; what is done is not done again."""

    file: str = option("FILE.toml.", "data", positional=True)
    out: str | None = option("Folder of the pipeline, instead of `out` in the file.", "output", default=None)
    only: tuple[str, ...] = option(
        "Rows to run, with the selections that they need. Default: all. The report has every complete row.",
        "data",
        default=(),
    )
    engine: Engine = option(
        "local: one stage after the other. ray: as tasks of Ray, on the cluster that RAY_ADDRESS names, else on this "
        "machine. Needs pip install '.[ray]'.",
        "machine",
        default="local",
    )
    cpus_per_stage: float = option("Cores that Ray reserves for a stage.", "machine", default=1.0, above=0)
    gpus_per_stage: float | None = option(
        "GPUs that Ray reserves for a stage, such as 0.5. Default: 1 where there are GPUs, else 0.",
        "machine",
        default=None,
        least=0,
    )


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Checked):
    """The whole thing on images that come with scikit-learn, offline, in a few minutes."""

    out: str = option("Folder of everything that the demo writes.", "output", default="demo")
    seeds: int = option("Number of seeds per row.", "training", default=2, least=1)
    steps: int = option("Optimizer steps per run.", "training", default=150, least=1)
