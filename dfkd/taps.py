"""Taps: the places in a network where its features are taken, found by running it or named by hand."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dfkd.errors import RequestError, nearest

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Tap:
    """One side of a module; written `layer1.0.bn1` for its output and `linear:input` for its input."""

    path: str
    side: Literal["output", "input"] = "output"

    def __str__(self) -> str:
        return self.path if self.side == "output" else f"{self.path}:input"


@dataclass(frozen=True)
class FoundTaps:
    """The taps `first` and `last` of a network, and what its user should know about them, one line each."""

    taps: dict[str, Tap]
    notes: list[str]


def parse_tap(text: str) -> Tap:
    """A tap from `PATH`, `PATH:output` or `PATH:input`. Raises: RequestError for anything else."""
    path, colon, side = text.partition(":")
    if not path or (colon and side not in ("output", "input")):
        raise RequestError(f"tap {text!r} is not PATH, PATH:output or PATH:input, such as bn1 or linear:input")
    return Tap(path, "input" if side == "input" else "output")


def parse_taps(texts: Sequence[str]) -> dict[str, Tap]:
    """Taps by name from `first=bn1 last=linear:input`. Raises: RequestError for another form or a repeated name."""
    taps: dict[str, Tap] = {}
    for text in texts:
        name, equals, tap = text.partition("=")
        if not name or not equals or name in taps:
            why = "names a tap twice" if name in taps else "is not NAME=PATH, such as first=bn1 or last=linear:input"
            raise RequestError(f"tap {text!r} {why}")
        taps[name] = parse_tap(tap)
    return taps


def find_taps(
    module: nn.Module,
    example: Float[Tensor, "batch channels height width"],
    given: Mapping[str, Tap] | None = None,
    wanted: Collection[str] = ("first", "last"),
) -> FoundTaps:
    """The taps of explicit feature distillation (EEIKD, arXiv 2302.08771), by the order in which `module` runs.

    `first` is the output of the first BatchNorm, before any activation; without BatchNorm, that of the stem (the first
    convolution, or linear layer where there is none). `last` is the input of the last linear layer that gives as many
    values as there are classes; where a convolution does (SqueezeNet), that convolution's input. Of the taps that are
    `wanted`, those `given` are kept and not searched. The module's training flags and statistics stay as they are.
    Raises: RequestError where a tap is not found, or the module does not give logits for `example`.
    """
    taps, notes = dict(given or {}), []
    searches = {
        name: search for name, search in {"first": _first, "last": _last}.items() if name in {*wanted} - {*taps}
    }
    if not searches:
        return FoundTaps(taps, [])
    trace = _trace(module, example)
    for name, search in searches.items():
        tap, note = search(trace)
        if tap is None:
            raise RequestError(
                f"the tap {name!r} of this {type(module).__name__} cannot be found ({note}); name it by hand: "
                "--student-taps or --teacher-taps first=bn1 last=linear:input, or leave out the loss that reads it"
            )
        taps[name] = tap
        notes += [note] if note else []
    return FoundTaps(taps, notes)


class Tapped:
    """Runs a module and returns its logits together with its features at `taps`.

    A feature is a copy, as the module made or took it: an in-place ReLU behind it does not change it, gradients flow
    through it. Where a module runs twice in one pass, an output is that of its first run and an input that of its last.
    Raises: RequestError for a path that the module has not, or, when called, for a place that is not passed or whose
    value is no tensor.
    """

    def __init__(self, module: nn.Module, taps: Mapping[str, Tap]) -> None:
        self.module = module
        self._taps = dict(taps)
        self._captured: dict[str, Tensor] | None = None  # a dictionary during a call, so that nothing outlives it
        self._handles: list[RemovableHandle] = []
        modules = dict(module.named_modules(remove_duplicate=False))
        for tap in taps.values():
            if tap.path not in modules or not tap.path:
                raise RequestError(f"the model has no module {tap.path!r}{nearest(tap.path, filter(None, modules))}")
        for name, tap in taps.items():
            self._handles.append(self._hook(modules[tap.path], name, tap))

    def __call__(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch classes"], dict[str, Tensor]]:
        """The logits and the features by tap name, each in the type that the module computes in."""
        features: dict[str, Tensor] = {}
        self._captured = features
        try:
            logits = self.module(x)
        finally:
            self._captured = None
        if not isinstance(logits, Tensor):  # torchvision's GoogLeNet and Inception in training mode
            kind = type(logits).__name__
            raise RequestError(
                f"the model returns a {kind}, not one tensor; turn its auxiliary heads off (aux_logits=false)"
            )
        for name, tap in self._taps.items():
            if name not in features:
                raise RequestError(f"the tap {name}={tap} is not passed when the model runs; name another module")
        return logits, features

    def remove(self) -> None:
        """Take the hooks out of the module; further calls find no features."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, layer: nn.Module, name: str, tap: Tap) -> RemovableHandle:
        def keep(value: Any) -> None:
            if self._captured is None or (tap.side == "output" and name in self._captured):
                return
            if not isinstance(value, Tensor):
                raise RequestError(
                    f"the tap {name}={tap} is a {type(value).__name__}, not a tensor; name another module"
                )
            self._captured[name] = value.clone()

        if tap.side == "output":
            return layer.register_forward_hook(lambda _, inputs, output: keep(output))
        return layer.register_forward_pre_hook(
            lambda _, inputs, named: keep(next(iter([*inputs, *named.values()]), None)), with_kwargs=True
        )


@dataclass
class _Run:
    """One run of a module within a forward pass, in the order of entering."""

    path: str
    layer: nn.Module
    width: int = 0
    """The last dimension of a linear layer's output."""


@dataclass(frozen=True)
class _Trace:
    runs: list[_Run]
    classes: int


def _first(trace: _Trace) -> tuple[Tap | None, str]:
    """The first tap and a note on it; no tap and the reason."""
    for i, run in enumerate(trace.runs):
        if isinstance(run.layer, _BATCH_NORM):
            # timm fuses the activation into a subclass of BatchNorm: what its first child takes is normalized only
            inner = next((other for other in trace.runs[i + 1 :] if other.path.startswith(run.path + ".")), None)
            return (Tap(inner.path, "input"), "") if inner else (Tap(run.path), "")
    for kind in (_CONVOLUTION, nn.Linear):
        for run in trace.runs:
            if isinstance(run.layer, kind):
                return Tap(run.path), f"no BatchNorm: the stem's output {run.path!r} is used instead"
    return None, "no BatchNorm, convolution or linear layer runs in it"


def _last(trace: _Trace) -> tuple[Tap | None, str]:
    """The last tap and a note on it; no tap and the reason."""
    for run in reversed(trace.runs):
        if isinstance(run.layer, nn.Linear) and run.width == trace.classes:
            return Tap(run.path, "input"), ""
    for run in reversed(trace.runs):
        if isinstance(run.layer, _CONVOLUTION) and run.layer.out_channels == trace.classes:
            note = (
                f"no linear layer gives the {trace.classes} classes: the input of the convolution {run.path!r} is used"
            )
            return Tap(run.path, "input"), note
    return None, f"no linear layer or convolution that gives {trace.classes} classes runs in it"


@torch.no_grad()
def _trace(module: nn.Module, example: Tensor) -> _Trace:
    """Run `module` in evaluation mode and note which of its modules run, in the order of entering them."""
    runs: list[_Run] = []
    handles: list[RemovableHandle] = []
    with _evaluating(module):
        try:
            for path, layer in module.named_modules():
                handles += _watch(path, layer, runs)
            logits = module(example)
        except Exception as error:  # foreign code: anything can be raised for a shape that it cannot take
            raise RequestError(f"the model cannot take a batch of shape {list(example.shape)}: {error}") from error
        finally:
            for handle in handles:
                handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise RequestError(f"the model returns a {type(logits).__name__}, not one tensor of logits [batch, classes]")
    return _Trace(runs, logits.shape[1])


def _watch(path: str, layer: nn.Module, runs: list[_Run]) -> list[RemovableHandle]:
    handles = [layer.register_forward_pre_hook(lambda layer, inputs: runs.append(_Run(path, layer)))]
    if isinstance(layer, nn.Linear):

        def measure(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            next(run for run in reversed(runs) if run.layer is layer).width = output.shape[-1]

        handles.append(layer.register_forward_hook(measure))
    return handles


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block, then each module's own flag again."""
    training = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, flag in training:
            layer.training = flag
