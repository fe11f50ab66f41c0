"""Search for a network's taps: one forward pass shows which modules run, and in which order."""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dfkd.models.ensemble import leader
from dfkd.models.features.taps import Tap, in_group, modes_kept, network_code, run_network
from dfkd.system.errors import RequestError

GROUPS = ("stage", "pre", "begin")
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ACTIVATION = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Softplus),
)
_PADDING = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)
"""Layers that pad a map for a convolution. Their output is not a resolution of its own."""


@dataclass(frozen=True)
class FoundTaps:
    """The taps of a network by name, and notes for the user, one line each."""

    taps: dict[str, Tap]
    notes: list[str]


def find_taps(
    module: nn.Module,
    example: Float[Tensor, "batch channels height width"],
    given: Mapping[str, Tap] | None = None,
    wanted: Collection[str] = ("first", "last"),
) -> FoundTaps:
    """Return the taps that losses read, by the order in which the modules of `module` run.

    `first` is the output of the first BatchNorm, before any activation. Without BatchNorm, `first` is the output of the
    first convolution, or of the first linear layer if there is no convolution. `last` is the input of the last linear
    layer that gives as many values as there are classes. If a convolution does that (SqueezeNet), `last` is the
    convolution's input.

    Three groups have a tap for every resolution, numbered from the shallowest (stage1, stage2, ...). `stage` is the
    output of the last of the outermost modules at the resolution. `pre` is the same before its activation. `begin` is
    the first map of the same shape. Maps of a single pixel do not count.

    Only `wanted` taps and groups are searched, unless they are `given`. Given taps of a group are the whole group. The
    module's training flags and statistics do not change. For an ensemble, the taps are those of its first network.
    Raises: RequestError if a tap is not found, or if the module does not return logits for `example`.
    """
    taps, notes = dict(given or {}), []
    missing = {*wanted} - {*taps} - {group_of(name) for name in taps}
    if not missing:
        return FoundTaps(taps, [])
    within, network = leader(module)
    trace = _trace(network, example)
    for name, search in {"first": _first, "last": _last}.items():
        if name in missing:
            tap, note = search(trace)
            if tap is None:
                raise _not_found(name, module, note, "first=bn1 last=linear:input")
            taps[name] = replace(tap, path=within + tap.path)
            notes += [note] if note else []
    for group in GROUPS:
        if group in missing:
            found, notes_of_group = _group(trace, group)
            if not found:
                raise _not_found(group, module, "no map of more than one pixel", f"{group}1=layer1 {group}2=layer2")
            taps |= {f"{group}{i}": replace(tap, path=within + tap.path) for i, tap in enumerate(found, 1)}
            notes += notes_of_group
    return FoundTaps(taps, notes)


def group_of(tap: str) -> str:
    """Return the group of a numbered tap, such as `stage` for stage2; else the tap's own name."""
    group = tap.rstrip("0123456789")
    return group if group in GROUPS else tap


def match_groups(teacher: Mapping[str, Tap], student: Mapping[str, Tap]) -> tuple[dict[str, Tap], dict[str, Tap]]:
    """Return the taps of both networks, equally many in every group: the deepest, as stems differ."""
    matched: tuple[dict[str, Tap], dict[str, Tap]] = ({}, {})
    groups = dict.fromkeys(group_of(name) for name in teacher)
    for group in groups:
        sides = [[taps[name] for name in in_group(taps, group)] for taps in (teacher, student)]
        count = min(map(len, sides))
        for taps, tapped in zip(matched, sides, strict=True):
            numbered = [group] if group not in GROUPS else [f"{group}{i}" for i in range(1, count + 1)]
            taps.update(zip(numbered, tapped[-count:], strict=True))
    return matched


def _not_found(name: str, module: nn.Module, why: str, by_hand: str) -> RequestError:
    return RequestError(
        f"the tap {name!r} of this {type(module).__name__} cannot be found ({why}); name it by hand: "
        f"--student-taps or --teacher-taps {by_hand}, or leave out the loss that reads it"
    )


@dataclass
class _Run:
    """One run of a module within a forward pass."""

    path: str
    layer: nn.Module
    output: Any = None
    """The module's return value. A tensor that several modules return is the same object."""
    exited: int = -1
    """Position in the order in which modules return."""


@dataclass(frozen=True)
class _Trace:
    runs: list[_Run]
    """Runs in the order in which modules are entered."""
    classes: int
    aspect: float
    """Height of the images divided by their width."""


def _first(trace: _Trace) -> tuple[Tap | None, str]:
    """Return the first tap and a note on it; None and the reason if there is none."""
    for i, run in enumerate(trace.runs):
        if isinstance(run.layer, _BATCH_NORM):
            # timm's BatchNorm subclass includes the activation: its first child's input is only normalized
            inner = next((other for other in trace.runs[i + 1 :] if other.path.startswith(run.path + ".")), None)
            return (Tap(inner.path, "input"), "") if inner else (Tap(run.path), "")
    for kind in (_CONVOLUTION, nn.Linear):
        for run in trace.runs:
            if isinstance(run.layer, kind):
                return Tap(run.path), f"no BatchNorm: the stem's output {run.path!r} is used instead"
    return None, "no BatchNorm, convolution or linear layer runs in it"


def _last(trace: _Trace) -> tuple[Tap | None, str]:
    """Return the last tap and a note on it; None and the reason if there is none."""
    for run in reversed(trace.runs):
        if isinstance(run.layer, nn.Linear) and run.output.shape[-1] == trace.classes:
            return Tap(run.path, "input"), ""
    for run in reversed(trace.runs):
        if isinstance(run.layer, _CONVOLUTION) and run.layer.out_channels == trace.classes:
            note = (
                f"no linear layer gives the {trace.classes} classes: the input of the convolution {run.path!r} is used"
            )
            return Tap(run.path, "input"), note
    return None, f"no linear layer or convolution that gives {trace.classes} classes runs in it"


def _group(trace: _Trace, group: str) -> tuple[list[Tap], list[str]]:
    """Return the taps of a group, from the shallowest to the deepest, and notes on them."""
    runs_of = Counter(run.path for run in trace.runs)
    maps = [
        run
        for run in sorted(trace.runs, key=lambda run: run.exited)
        # a tap takes a module's first output, so the module must run once; the whole network is no tap
        if run.path and runs_of[run.path] == 1 and _is_map(run.output, trace.aspect)
        if not isinstance(run.layer, _PADDING)
    ]
    last: dict[tuple[int, int], _Run] = {}
    for run in maps:  # keep the outermost modules: a block that halves the map has both resolutions inside
        size = (run.output.shape[2], run.output.shape[3])
        if size not in last or run.path.count(".") <= last[size].path.count("."):
            last[size] = run
    taps, activated = [], []
    for _, stage in sorted(last.items(), key=lambda item: -math.prod(item[0])):
        if group == "begin":
            taps.append(next(Tap(run.path) for run in maps if run.output.shape == stage.output.shape))
        elif group == "pre":
            tap, after = _before_activation(trace, stage)
            taps.append(tap)
            activated += [stage.path] if after else []
        else:
            taps.append(Tap(stage.path))
    return taps, [_after_activation(activated)] if activated else []


def _after_activation(paths: list[str]) -> str:
    """Return the note on maps whose activation is not a module."""
    if len(paths) == 1:
        return f"the map of {paths[0]!r} cannot be taken before its activation: it is taken after it"
    more = f"{paths[0]!r} and {len(paths) - 1} more"
    return f"the maps of {more} cannot be taken before their activations: they are taken after them"


def _is_map(output: Any, aspect: float) -> bool:
    """Return whether an output is a map of several pixels with the images' proportions, channels first."""
    if not isinstance(output, Tensor) or output.ndim != 4:
        return False
    height, width = output.shape[2:]
    return height * width > 1 and abs(height - width * aspect) <= 1


def _before_activation(trace: _Trace, stage: _Run) -> tuple[Tap, bool]:
    """Return the input of the activation whose output the stage returns, and False.

    Without an activation module, return the stage's output, and whether it is activated: no value is below 0.
    """
    for run in reversed(trace.runs):
        if run.output is stage.output and isinstance(run.layer, _ACTIVATION):
            return Tap(run.path, "input"), False
    return Tap(stage.path), bool((stage.output >= 0).all() and (stage.output > 0).any())


def _device_of(module: nn.Module) -> torch.device:
    """Return the device of a network, which may have been moved since it was loaded."""
    return next((value.device for value in (*module.parameters(), *module.buffers())), torch.device("cpu"))


@torch.no_grad()
def _trace(module: nn.Module, example: Tensor) -> _Trace:
    """Run `module` in evaluation mode, and record the runs of its modules in the order of entering."""
    runs: list[_Run] = []
    order = itertools.count()
    with modes_kept(module.modules()), ExitStack() as hooks:
        with network_code(module):
            module.eval()
        for path, layer in module.named_modules():
            for hook in _watch(path, layer, runs, order):
                hooks.enter_context(hook)
        logits = run_network(module, example.to(_device_of(module)))
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise RequestError(f"the model returns a {type(logits).__name__}, not one tensor of logits [batch, classes]")
    return _Trace(runs, logits.shape[1], example.shape[2] / example.shape[3])


def _watch(path: str, layer: nn.Module, runs: list[_Run], order: Iterator[int]) -> list[RemovableHandle]:
    def leave(layer: nn.Module, inputs: Any, output: Any) -> None:
        run = next(run for run in reversed(runs) if run.layer is layer and run.exited < 0)
        run.output, run.exited = output, next(order)

    enter = layer.register_forward_pre_hook(lambda layer, inputs: runs.append(_Run(path, layer)))
    return [enter, layer.register_forward_hook(leave)]
