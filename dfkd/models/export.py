"""`dfkd export`: a model as one file for another program.

The file holds the network. Its input is a normalized float32 tensor [batch, channels, size, size] of any batch size,
and its output the logits. With `--with-normalize`, the input is pixels in [0, 1]. The file's metadata holds a
description of the input and the class names, which MODEL reads. With `--samples`, the file is run, and its logits are
compared with the model's.
"""

import contextlib
import inspect
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dfkd.config import ExportConfig
from dfkd.data.images.normalize import Normalization
from dfkd.data.labels import ClassNames
from dfkd.formats.overwrite import check_output
from dfkd.formats.shards import Shards
from dfkd.models.expected import NOTES
from dfkd.models.exported import Runner, compare, onnx_runner, program_runner, tell
from dfkd.models.fake_int8 import with_fixed_rounding
from dfkd.models.features.taps import network_code, run_network
from dfkd.models.load import Model
from dfkd.models.reduce import Half, to_int8
from dfkd.models.several import load_classifier
from dfkd.models.state import state_to_write
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.files import output_path, replacing
from dfkd.system.foreign import Foreign
from dfkd.system.remote_folder import folder_of

CHECKED, CALIBRATED = 64, 128
"""Largest number of images for the check of a file, and of other images for the calibration of int8."""
_BATCH = "batch"


class Normalized(nn.Module):
    """A network that first normalizes its input."""

    def __init__(self, network: nn.Module, preprocess: Normalization) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocess.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocess.std)[:, None, None])

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits of images in [0, 1]."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class Export:
    """The content of a file: the network in a number type, and the description of its input."""

    model: Model
    module: nn.Module
    """The network as the file stores it."""
    dtype: str
    notes: Mapping[str, Any]
    """Description of the input, for the file's metadata."""


def run(config: ExportConfig) -> Path:
    """Export a model and return the file's path.

    Raises: RequestError if the input size is unknown or a package is missing.
    """
    out = output_path(config.out)
    if out.is_dir():
        raise RequestError(f"--out {config.out} is a folder; give a file")
    check_output(config.out, "--out", (config.model, config.preset, config.classes))
    form = config.format or out.suffix.removeprefix(".")
    if form not in FORMATS:
        raise RequestError(f"--out {config.out} does not end in .{', .'.join(FORMATS)}; name its --format")
    _check(config, form)
    model = load_classifier(config.model, config.input, "--model")
    if config.classes is not None:
        names = ClassNames(config.classes)
        names.check(model.classes)
        model = replace(model, class_names=names.names)
    images = None if config.samples is None else _images(model, config.samples)
    export = _export(config, model, images, config.dtype)
    content = FORMATS[form](export)
    if images is not None and form in RUNNERS:
        _compare(config, form, export, content, images)
    with replacing(out) as partial:
        partial.write_bytes(content)
    kind = "" if config.dtype == "float32" else f" in {config.dtype}"
    say(f"{out}: {model.spec} as {form}{kind}, {len(content):,} bytes; {_input(export)}")
    return out


def _check(config: ExportConfig, form: str) -> None:
    """Reject invalid options before anything is opened."""
    if form == "safetensors" and (config.dtype == "int8" or config.with_normalize):
        what = "--dtype int8" if config.dtype == "int8" else "--with-normalize"
        raise RequestError(f"{what} needs a program, and safetensors are weights alone; give --format onnx or pt2")
    if config.dtype == "int8" and config.samples is None:
        raise RequestError("--dtype int8 is calibrated on images: --samples names a selection of this teacher")
    if config.samples is not None and form not in RUNNERS:
        say("note: --samples changes nothing: safetensors are weights alone")


def _images(model: Model, samples: str) -> UInt8[Tensor, "images height width channels"]:
    """Read evenly spaced images of a selection."""
    shards = Shards(folder_of(samples))
    image = shards.manifest.image
    if (image.size, image.channels) != (model.image_size or image.size, model.channels):
        raise RequestError(
            f"--samples {samples} has images of {image.size} pixels and {image.channels} channels, the model takes "
            f"{model.image_size} and {model.channels}"
        )
    if len(shards) == 0:
        raise RequestError(f"--samples {samples} is empty")
    # rounded down, unlike `evenly_spaced`: the images decide the bytes of an int8 file
    rows = np.unique(np.linspace(0, len(shards) - 1, CHECKED + CALIBRATED).astype(np.int64))
    return torch.from_numpy(shards.pixels(rows))


def _export(
    config: ExportConfig, model: Model, images: UInt8[Tensor, "images height width channels"] | None, dtype: str
) -> Export:
    """Convert the network to a number type, with its normalization if requested."""
    with network_code(model.module):
        module = model.module.eval()
    with _in_one_line(model):
        if dtype == "int8":
            assert images is not None
            learn = images[torch.arange(len(images)) % 3 != 0] if len(images) >= 6 else images
            module = to_int8(
                module, model.preprocess(learn).contiguous().split(max(1, min(16, len(learn) // 2))), model.spec
            )
        elif dtype == "float16":
            module = Half(module)
        if config.with_normalize:
            module = Normalized(module, model.preprocess)
    notes: dict[str, Any] = {"mean": list(model.preprocess.mean), "std": list(model.preprocess.std)}
    notes |= {"image_size": model.image_size, **model.frame.describe()}
    notes |= {"normalized_inside": True} if config.with_normalize else {}
    notes |= {"classes": list(model.class_names)} if model.class_names else {}
    return Export(model, module.eval(), dtype, notes)


def _compare(
    config: ExportConfig, form: str, export: Export, content: bytes, images: UInt8[Tensor, "images h w channels"]
) -> None:
    """Compare the logits of the file, and of a float32 file if that is another, with the model's.

    With six or more images, these are images on which nothing was calibrated.
    """
    checked = images[::3][:CHECKED] if len(images) >= 6 else images
    views = export.model.preprocess(checked).contiguous()
    given = checked.permute(0, 3, 1, 2).contiguous() / 255 if config.with_normalize else views
    with torch.no_grad():
        expected = torch.cat([run_network(export.model.module, some) for some in views.split(16)])
    files = {export.dtype: content}
    if export.dtype != "float32":
        files = {"float32": FORMATS[form](_export(config, export.model, None, "float32")), **files}
    rows = []
    for name, one in files.items():
        runner, ran = RUNNERS[form](one)
        rows.append(compare(name, len(one), ran, given, expected))
    tell(rows, runner, len(checked))


def _safetensors(export: Export) -> bytes:
    from safetensors.torch import save

    metadata = {name: json.dumps(value) for name, value in export.notes.items()}
    module = export.module.network if isinstance(export.module, Half) else export.module
    return save(state_to_write(module), {"architecture": export.model.architecture, **metadata})


def _pt2(export: Export) -> bytes:
    file = io.BytesIO()
    torch.export.save(_program(export), file, extra_files={NOTES: json.dumps(dict(export.notes))})
    return file.getvalue()


def _onnx(export: Export) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RequestError(f"--format onnx needs {error.name}: pip install '.[onnx]' in the checkout of dfkd") from None
    traced = _program(export)
    with _in_one_line(export.model):
        program = torch.onnx.export(traced, input_names=["images"], output_names=["logits"], verbose=False)
    assert program is not None
    proto = program.model_proto
    _name_batch(proto.graph)
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in export.notes.items()})
    content: bytes = proto.SerializeToString()
    return content


def _name_batch(graph: Any) -> None:
    """Name the traced batch dimension `batch`, also in the sizes that are computed from it."""
    traced = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    name = re.compile(rf"(?<!\w){re.escape(traced)}(?!\w)")
    for value in (*graph.input, *graph.output, *graph.value_info) if traced else ():
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = name.sub(_BATCH, dim.dim_param)


FORMATS: dict[str, Callable[[Export], bytes]] = {"safetensors": _safetensors, "pt2": _pt2, "onnx": _onnx}
RUNNERS: dict[str, Callable[[bytes], tuple[str, Runner]]] = {"pt2": program_runner, "onnx": onnx_runner}


def _program(export: Export) -> torch.export.ExportedProgram:
    """Trace the network with a free batch size and a fixed image size."""
    model, module = export.model, with_fixed_rounding(export.module)
    if model.image_size is None:
        raise RequestError(f"the input size of {model.spec} is not known; give --image-size N")
    # two images: torch.export would make a batch of one a constant
    example = torch.zeros(2, model.channels, model.image_size, model.image_size)
    free: Any = {0: torch.export.Dim(_BATCH)}
    taken = next(iter(inspect.signature(module.forward).parameters.values()))
    if taken.kind is taken.VAR_POSITIONAL:  # a module that was read from a .pt2 file takes *args
        free = (free,)
    with _in_one_line(model):
        program = torch.export.export(module, (example,), dynamic_shapes=(free,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the stack trace holds paths of this machine
    return program


@contextlib.contextmanager
def _in_one_line(model: Model) -> Iterator[None]:
    """Raise RequestError instead of torch's long message if a network cannot be traced."""
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


def _input(export: Export) -> str:
    model = export.model
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (model.preprocess.mean, model.preprocess.std))
    size = model.image_size or "N"
    less = "" if "normalized_inside" in export.notes else f" less mean ({mean}), over std ({std})"
    return f"input [batch, {model.channels}, {size}, {size}]: pixels in [0, 1]{less}"
