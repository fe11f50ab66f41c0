"""Options of the stages that evaluate, explain, inspect, compare and export."""

from dataclasses import dataclass
from typing import Literal

from dfkd.config.option import Checked, option
from dfkd.config.stages.shared import BITS, CLASSES, MODEL, PRECISION, ModelConfig, Precision


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ModelConfig):
    """Measure a model on labeled data."""

    model: str = option(MODEL, "models", reads="model")
    data: str = option("Labeled DATA.", "data", reads="data")
    classes: str | None = option(CLASSES.format("--data"), "data", default=None)
    bits: int | None = option(BITS.format("--data"), "data", default=None, least=8, most=16)
    teacher: str | None = option("MODEL to measure the agreement with.", "models", default=None, reads="model")
    json: str | None = option("FILE for the figures, which are also printed.", "output", default=None)
    batch_size: int = option("Images per forward pass.", "machine", default=256, least=1)
    precision: Precision = option(PRECISION, "machine", default="fp32")


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(ModelConfig):
    """Show on which classes and images a student and its teacher disagree, and where they look."""

    model: str = option("The student: a RUN or another MODEL.", "models", reads="model")
    teacher: str | None = option(
        "MODEL of its teacher. Default: that of the RUN.", "models", default=None, reads="model"
    )
    data: str | None = option(
        "DATA, labeled or not. Default: the labeled data of the RUN (its --test).", "data", default=None, reads="data"
    )
    classes: str | None = option(CLASSES.format("--data"), "data", default=None)
    bits: int | None = option(BITS.format("--data"), "data", default=None, least=8, most=16)
    count: int = option(
        "Number of images with the largest disagreement to show on the page.", "output", default=24, least=0
    )
    entropy: int = option(
        "Number of images whose pixel-wise entropy is computed (arXiv 2003.03622). Each takes some 400 forward and "
        "backward passes of both networks.",
        "output",
        default=0,
        least=0,
    )
    baseline: str | None = option(
        "MODEL whose visual concepts are counted for comparison, such as the same network trained on labels. Needs "
        "--entropy.",
        "models",
        default=None,
        reads="model",
    )
    foreground: str | None = option(
        "FILE.npy or FILE.npz with one mask for each image of DATA: nonzero where the object is. Visual concepts are "
        "then counted on the object and beside it. For a RUN with --keep-weights, the page also shows when they "
        "appeared.",
        "data",
        default=None,
    )
    out: str = option("FILE.html. FILE.csv with a line for every image is written beside it.", "output")
    batch_size: int = option("Images per forward pass.", "machine", default=256, least=1)
    precision: Precision = option(PRECISION, "machine", default="fp32")


@dataclass(frozen=True, kw_only=True)
class InspectConfig(Checked):
    """Show what is in a selection: counts, scores, a gallery."""

    folder: str = option(
        "Folder of a selection, or of a run whose student is a soft_tree. With --verify: of any run or pipeline.",
        "data",
        positional=True,
    )
    out: str | None = option(
        "FILE.html with the scores and a gallery. For a soft_tree: with its filters.", "output", default=None
    )
    pool: tuple[str, ...] = option(
        "DATA that the selection was made from: the page then also shows rejected images. For a soft_tree: images "
        "whose paths through the tree are shown.",
        "data",
        default=(),
        reads="data",
    )
    verify: bool = option("Only read every file and compare it with its checksum.", "output", default=False)


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Checked):
    """Put runs side by side: mean and standard deviation over seeds."""

    runs: tuple[str, ...] = option("RUN folders.", "data", positional=True)
    out: str = option("FILE.html. FILE.csv is written beside it.", "output")
    disagreements: int = option(
        "Number of images to show for each row on which student and teacher disagree, with the classes that are "
        "confused. Both networks of a row's first seed are run on its test images.",
        "output",
        default=0,
        least=0,
    )


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ModelConfig):
    """Write a model as one file for another program."""

    model: str = option(MODEL, "models", reads="model")
    format: Literal["onnx", "pt2", "safetensors"] | None = option(
        "Default: the suffix of the file. onnx needs pip install '.[onnx]'.", "output", default=None
    )
    out: str = option("FILE to write.", "output")
    dtype: Literal["float32", "float16", "int8"] = option(
        "Data type of the weights. int8: for convolutions and linear layers, calibrated on --samples; .onnx or .pt2.",
        "output",
        default="float32",
    )
    with_normalize: bool = option(
        "Put the normalization into the file, whose input is then pixels in [0, 1].", "output", default=False
    )
    samples: str | None = option(
        "Selection folder. The file is compared with the model on some of its images. int8 is calibrated on others.",
        "data",
        default=None,
        reads="selection",
    )
    classes: str | None = option(
        "FILE with the names of the model's classes, which are stored in the exported file.", "data", default=None
    )
