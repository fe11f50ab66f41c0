"""`dfkd export`: a model as one file for another program.

The file holds the network alone: it takes normalized float32 images [batch, channels, size, size], any batch, and gives
logits. The normalization is printed, and stored in the metadata of a safetensors file or beside a program, where MODEL
finds it again.
"""

import contextlib
import inspect
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dfkd.config import ExportConfig
from dfkd.formats.overwrite import check_output
from dfkd.models.expected import NOTES
from dfkd.models.features.taps import network_code
from dfkd.models.load import Model, load_trained
from dfkd.models.weights import state_to_write
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.files import output_path, replacing
from dfkd.system.foreign import Foreign


def run(config: ExportConfig) -> Path:
    """Export as `config` says. Raises: RequestError where the input size is unknown or a package is missing."""
    out = output_path(config.out)
    if out.is_dir():
        raise RequestError(f"--out {config.out} is a folder; give a file")
    check_output(config.out, "--out", (config.model, config.preset))
    form = config.format or out.suffix.removeprefix(".")
    if form not in FORMATS:
        raise RequestError(f"--out {config.out} does not end in .{', .'.join(FORMATS)}; name its --format")
    model = load_trained(
        config.model,
        "--model",
        normalize=config.normalize,
        image_size=config.image_size,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
    )
    content = FORMATS[form](model)
    with replacing(out) as partial:
        partial.write_bytes(content)
    say(f"{out}: {model.spec} as {form}, {len(content):,} bytes; {_input(model)}")
    return out


def _safetensors(model: Model) -> bytes:
    from safetensors.torch import save

    metadata = {"architecture": model.architecture, "mean": json.dumps(model.preprocess.mean)}
    metadata |= {"std": json.dumps(model.preprocess.std), "image_size": json.dumps(model.image_size)}
    return save(state_to_write(model.module), metadata)


def _pt2(model: Model) -> bytes:
    file = io.BytesIO()
    notes = {"mean": list(model.preprocess.mean), "std": list(model.preprocess.std), "image_size": model.image_size}
    torch.export.save(_program(model), file, extra_files={NOTES: json.dumps(notes)})
    return file.getvalue()


def _onnx(model: Model) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RequestError(f"--format onnx needs {error.name}: pip install '.[onnx]' in the checkout of dfkd") from None
    traced = _program(model)
    with _in_one_line(model):
        program = torch.onnx.export(traced, input_names=["images"], output_names=["logits"], verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


FORMATS: dict[str, Callable[[Model], bytes]] = {"safetensors": _safetensors, "pt2": _pt2, "onnx": _onnx}


def _program(model: Model) -> torch.export.ExportedProgram:
    """The traced network; its batch is free, its image size is not."""
    if model.image_size is None:
        raise RequestError(f"the input size of {model.spec} is not known; give --image-size N")
    # two images: a batch of one would be taken for a constant
    example = torch.zeros(2, model.channels, model.image_size, model.image_size)
    free: Any = {0: torch.export.Dim("batch")}
    taken = next(iter(inspect.signature(model.module.forward).parameters.values()))
    if taken.kind is taken.VAR_POSITIONAL:  # what was read from a .pt2 file takes anything
        free = (free,)
    with network_code(model.module):
        module = model.module.eval()
    with _in_one_line(model):
        program = torch.export.export(module, (example,), dynamic_shapes=(free,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names the files of this machine
    return program


@contextlib.contextmanager
def _in_one_line(model: Model) -> Iterator[None]:
    """Raises: RequestError, instead of torch's pages, for a network that cannot be traced."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    what = f"model {model.spec!r} cannot be written as a program:"
    why = "; torch traces no branch on values, no loop over the batch and no NumPy; --format safetensors works"
    try:
        with Foreign(what, model.module, always=True, hint=why), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _input(model: Model) -> str:
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (model.preprocess.mean, model.preprocess.std))
    size = model.image_size or "N"
    return f"input [batch, {model.channels}, {size}, {size}]: pixels in [0, 1] less mean ({mean}), over std ({std})"
