"""Comparison of an exported file with its model: largest difference, equal predictions, time and size."""

import io
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dfkd.system.console import say
from dfkd.system.text import aligned

Runner = Callable[[Float[Tensor, "batch channels height width"]], Float[Tensor, "batch classes"]]
TIMED = 10
"""Images, in batches of one, by which the time per image is measured."""
_AT_ONCE = 16
"""Batch size of the comparison."""


@dataclass(frozen=True)
class Compared:
    """Result of the comparison of a file with its model."""

    name: str
    size: int
    """Size of the file, in bytes."""
    seconds: float
    """Time for one image, in seconds."""
    difference: float
    """Largest absolute difference of the logits."""
    equal: float
    """Share of the images with the same predicted class."""

    def row(self) -> list[str]:
        """Format the result as cells of a table."""
        return [
            self.name,
            f"{self.size:,}",
            f"{1000 * self.seconds:.2f}",
            f"{self.difference:.2g}",
            f"{self.equal:.1%}",
        ]


HEAD = ("file", "bytes", "ms per image", "largest difference", "equal top-1")


def compare(
    name: str, size: int, run: Runner, images: Float[Tensor, "images *shape"], expected: Float[Tensor, "images classes"]
) -> Compared:
    """Run a file on images, and compare its logits with the model's."""
    found = torch.cat([run(some) for some in images.split(_AT_ONCE)])
    started = time.perf_counter()
    timed = images[:TIMED].split(1)
    for one in timed:
        run(one)
    seconds = (time.perf_counter() - started) / len(timed)
    equal = (found.argmax(dim=1) == expected.argmax(dim=1)).float().mean()
    return Compared(name, size, seconds, float((found - expected).abs().max()), float(equal))


def tell(rows: list[Compared], runner: str, images: int) -> None:
    """Print the results as a table."""
    say(f"checked with {runner} on {images:,} images of the selection, against the model in float32:")
    for line in aligned(HEAD, [row.row() for row in rows]).splitlines():
        say(f"  {line}")


def onnx_runner(content: bytes) -> tuple[str, Runner]:
    """Return the name and the function that run an ONNX file.

    onnxruntime is used if installed, else the slow reference of the library onnx.
    """
    try:
        import onnxruntime
    except ImportError:
        from onnx import load_model_from_string
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(load_model_from_string(content))
        name = evaluator.input_names[0]
        return "onnx.reference (onnxruntime is faster: pip install onnxruntime)", lambda images: torch.from_numpy(
            np.asarray(evaluator.run(None, {name: images.numpy()})[0])
        )
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return f"onnxruntime {onnxruntime.__version__}", lambda images: torch.from_numpy(
        session.run(None, {name: images.numpy()})[0]
    )


def program_runner(content: bytes) -> tuple[str, Runner]:
    """Return the name and the function by which torch runs a .pt2 file."""
    with warnings.catch_warnings():  # torch 2.11 warns about its own reader
        warnings.simplefilter("ignore")
        module = torch.export.load(io.BytesIO(content)).module()
    return f"torch {torch.__version__.partition('+')[0]}", torch.no_grad()(lambda images: module(images))
