"""Options of the stages `select` and `generate`, which make samples."""

from dataclasses import dataclass
from typing import Literal

from dfkd.config.option import option
from dfkd.config.stages.shared import (
    BITS,
    CLASS_DROPPING,
    DECODER,
    LOG,
    MIXING,
    OWN_TAPS,
    SHARD_TEACHER,
    TEACHER,
    Decoder,
    Engine,
    Logger,
    Mixing,
    ModelConfig,
)
from dfkd.system.limits import SHARE


@dataclass(frozen=True, kw_only=True)
class SelectConfig(ModelConfig):
    """Select the images of an unlabeled pool that this teacher can teach from."""

    teacher: str | tuple[str, ...] = option(TEACHER, "models", role="resolved", stored=False, reads="model")
    mixing: Mixing | None = option(MIXING, "models", default=None, role="resolved", stored=False)
    pool: tuple[str, ...] = option(
        "DATA: folders, .npz, .parquet, .arrow, .tar, hf:REPO, torchvision:NAME, s3://... (docs/reference.md#data). "
        "Labels are never read.",
        "data",
        role="resolved",
        stored=False,
        reads="data",
    )
    out: str = option(
        "Folder of the selection, or its URI in an object store.", "output", role="none", shown=False, stored=False
    )
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
        CLASS_DROPPING,
        "selection",
        default=0.05,
        least=0,
        below=1,
    )
    balance: Literal["none", "class", "cluster"] | None = option(
        "Select evenly over the predicted classes, or over clusters of the teacher's features. Default: class for the "
        "methods statistics and threshold, else none.",
        "selection",
        default=None,
    )
    deduplicate: float | None = option(
        "Drop an image whose features have at least this cosine similarity (such as 0.99) to a better image. "
        "Above ten million images they are compared cluster by cluster (docs/scale.md). Default: keep all.",
        "selection",
        default=None,
        above=0,
        most=1,
    )
    deduplicate_pixels: float | None = option(
        "Select an image last if its pixels, as 8x8 luminances, have at least this cosine similarity (such as 0.95) to "
        "a better image: recompressed, recolored and mirrored copies. Not for aligned images such as X-rays, which are "
        "all alike. Default: no image is compared.",
        "selection",
        default=None,
        above=0,
        most=1,
    )
    teacher_taps: tuple[str, ...] = option(OWN_TAPS, "models", default=())
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
        "Number of workers of Ray. Default: as many as Ray has resources for.",
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
        "Above 64 pixels: store images as JPEG files whose shorter side has this number of pixels, such as 256, unless "
        "they are smaller. distill then reads and decodes less. Default: the files as they are.",
        "output",
        default=None,
        least=1,
        stored=False,
    )
    max_unreadable: float = option(
        "Stop if more than this share of the pool cannot be read.", "data", default=0.01, least=0, most=1
    )
    bits: int | None = option(
        BITS.format("--pool"), "data", default=None, least=8, most=16, role="resolved", stored=False
    )
    decoder: Decoder = option(DECODER, "machine", default="cpu", role="resolved", machine=True, stored=False)
    batch_size: int = option(
        "Images per teacher forward pass. Another size computes the scores again.", "machine", default=256, least=1
    )


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(ModelConfig):
    """Make images from the teacher alone, without a pool."""

    teacher: str | tuple[str, ...] = option(TEACHER, "models", role="resolved", stored=False, reads="model")
    mixing: Mixing | None = option(MIXING, "models", default=None, role="resolved", stored=False)
    method: str = option(
        "dafl, deepinversion, ... (docs/generators.md), or your own class by its dotted name; NAME:key=value,...",
        "learning",
        shared=False,
    )
    out: str = option(
        "Folder of the images, a selection, or its URI in an object store.",
        "output",
        role="none",
        shown=False,
        stored=False,
    )
    count: int | None = option(
        "Number of images to make. Default: 10000, or the number that --fill needs.", "data", default=None, least=1
    )
    steps: int | None = option(
        "Steps of the method. Default: the method's own.", "training", default=None, least=1, shared=False
    )
    student: str | None = option(
        "MODEL with weights, such as a RUN, for methods that look for images on which student and teacher differ.",
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
    teacher_taps: tuple[str, ...] = option(OWN_TAPS, "models", default=())
    fill: str | None = option(
        "Folder of a selection. Images are made of its classes with the fewest images: --count of them, or up to the "
        "mean over its classes.",
        "data",
        default=None,
        role="resolved",
        stored=False,
        reads="selection",
    )
    class_dropping: float = option(
        CLASS_DROPPING,
        "learning",
        default=0.05,
        least=0,
        below=1,
    )
    shard_teacher: bool = option(
        SHARD_TEACHER, "machine", default=False, role="none", machine=True, shown=False, stored=False, off=False
    )
    batch_size: int = option("Images per step of the method.", "training", default=128, least=1, shared=False)
    checkpoint_every: int = option("Steps between checkpoints.", "output", default=500, least=1, role="none")
    log_every: int = option("Steps between rows of metrics.jsonl.", "output", default=50, least=1, role="none")
    log: tuple[Logger, ...] = option(
        LOG,
        "output",
        default=(),
        role="none",
        shown=False,
        stored=False,
    )
