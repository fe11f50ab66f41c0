"""Taps: the positions in a network where features are taken. `dfkd.models.features.find_taps` finds them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dfkd.system.errors import RequestError, nearest
from dfkd.system.foreign import Foreign, Raised


@dataclass(frozen=True)
class Tap:
    """The output or the input of a module, written `layer1.0.bn1` or `linear:input`."""

    path: str
    side: Literal["output", "input"] = "output"

    def __str__(self) -> str:
        return self.path if self.side == "output" else f"{self.path}:input"


def parse_tap(text: str) -> Tap:
    """Parse `PATH`, `PATH:output` or `PATH:input`. Raises: RequestError for another form."""
    path, colon, side = text.partition(":")
    if not path or (colon and side not in ("output", "input")):
        raise RequestError(f"tap {text!r} is not PATH, PATH:output or PATH:input, such as bn1 or linear:input")
    return Tap(path, "input" if side == "input" else "output")


def in_group(names: Iterable[str], group: str) -> list[str]:
    """Return the tap names of a numbered group, from the shallowest: `stage` has stage1, stage2, ..., stage10."""
    return sorted((n for n in names if n.rstrip("0123456789") == group), key=lambda n: int(n.removeprefix(group) or 0))


def parse_taps(texts: Sequence[str]) -> dict[str, Tap]:
    """Parse taps by name, such as `first=bn1 last=linear:input`.

    Raises: RequestError for another form or a repeated name.
    """
    taps: dict[str, Tap] = {}
    for text in texts:
        name, equals, tap = text.partition("=")
        if not name or not equals or name in taps:
            why = "names a tap twice" if name in taps else "is not NAME=PATH, such as first=bn1 or last=linear:input"
            raise RequestError(f"tap {text!r} {why}")
        taps[name] = parse_tap(tap)
    return taps


class Tapped:
    """A module that returns its logits together with its features at `taps`.

    A feature is a copy of the tensor as the module returned or received it. A later in-place ReLU does not change the
    copy, and gradients pass through it. If a module runs twice in one forward pass, an output is that of the first run,
    and an input that of the last.
    Raises: RequestError for a path that does not exist. A call raises it for a tap that is not reached or is no tensor.
    """

    def __init__(self, module: nn.Module, taps: Mapping[str, Tap]) -> None:
        self.module = module
        self._taps = dict(taps)
        # a dictionary during a call only, so that no tensor outlives the call
        self._captured: dict[str, Tensor] | None = None
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
        """Return the logits and the features by tap name, in the dtype in which the module computes."""
        features: dict[str, Tensor] = {}
        self._captured = features
        try:
            logits = self._run(x)
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

    def _run(self, x: Tensor) -> Any:
        """Run the module. If `view` rejects channels-last memory, the module uses contiguous memory from now on.

        Raises: RequestError for any exception of foreign code, but not for out of memory.
        """
        try:
            return run_network(self.module, x)
        except Raised as raised:
            if not _is_layout(raised.error):
                raise
        if self._captured is not None:
            self._captured.clear()
        with network_code(self.module):
            self.module.to(memory_format=torch.contiguous_format)
        self.module.register_forward_pre_hook(_contiguous)
        return run_network(self.module, x)

    @property
    def taps(self) -> dict[str, Tap]:
        """Taps by name."""
        return dict(self._taps)

    def remove(self) -> None:
        """Remove the hooks from the module. Later calls find no features."""
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


def run_network(module: nn.Module, x: Tensor) -> Any:
    """Run a network and return its output. Raises: RequestError for any exception but out of memory."""
    mode = "training" if module.training else "evaluation"
    what = f"the model {type(module).__name__} fails in {mode} mode on {list(x.shape)}:"
    try:
        with Foreign(what, module, always=True):
            return module(x)
    except Raised as raised:
        if "more than 1 value per channel" not in raised.said:  # BatchNorm's message for one image of one pixel
            raise
        raise RequestError(f"{raised}; give a larger --batch-size") from raised.error


def network_code(module: nn.Module) -> Foreign:
    """Return a context in which a network's methods besides `forward` may be called: `train`, `to`, `state_dict`."""
    return Foreign(f"the model {type(module).__name__} fails:", module, always=True)


@contextmanager
def modes_kept(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the mode of each layer, training or evaluation, after the block."""
    modes = [(layer, layer.training) for layer in layers]
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def _is_layout(error: BaseException) -> bool:
    """Return whether an error is that of `Tensor.view`, which cannot read channels-last memory."""
    return isinstance(error, RuntimeError) and "view size is not compatible" in str(error)


def _contiguous(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.contiguous() if isinstance(value, Tensor) else value for value in inputs)
