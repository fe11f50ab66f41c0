"""A pretended GPU: tensors that call themselves CUDA tensors, compute on the CPU, and refuse to meet its tensors.

It finds what a machine without a GPU hides: a tensor that was left on the CPU, a NumPy array made of a CUDA tensor, a
new tensor on the wrong device. It knows nothing of CUDA's kernels, streams and memory.

PyTorch's C++ code is told that the tensors are on the CPU, because its autograd engine needs a driver for CUDA tensors.
Python code is told that they are on CUDA. Autocast for CUDA becomes autocast for the CPU.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
"""Operators that take indices on the CPU for a CUDA tensor."""
ANYWHERE = {"_to_copy", "copy_", "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams"}
"""Operators that copy between devices, or for which PyTorch itself makes a tensor on what it takes for the device."""
_to, _cpu, _one_hot = torch.Tensor.to, torch.Tensor.cpu, nn.functional.one_hot


class Pretended(torch.Tensor):
    """A tensor of the pretended GPU, around one of the CPU."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, inner):
        with torch._C._DisableTorchDispatch():
            shell = torch.empty_strided(inner.shape, inner.stride(), dtype=inner.dtype, device="meta")
        made = torch.Tensor._make_subclass(cls, shell, False, dispatch_device=True, device_for_backend_keys=CPU)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def cpu(self, *_):
        return Leave.apply(self)

    def cuda(self, *_, **__):
        return self

    def numpy(self, *_, **__):
        raise TypeError("can't convert a tensor of the pretended GPU to numpy: use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self):
        return self.inner.tolist()


class Leave(torch.autograd.Function):
    """A copy on the CPU. Its gradient returns to the GPU."""

    @staticmethod
    def forward(ctx, x):
        return x.inner.clone()

    @staticmethod
    def backward(ctx, gradient):
        return Pretended(gradient)


class Enter(torch.autograd.Function):
    """A copy on the GPU. Its gradient returns to the CPU."""

    @staticmethod
    def forward(ctx, x):
        return Pretended(x.clone())

    @staticmethod
    def backward(ctx, gradient):
        return plain(gradient)


def plain(x):
    return x.inner if isinstance(x, Pretended) else x


def run(func, args, kwargs):
    """Run an operator on the tensors inside, if all that are not scalars are on one device."""
    if func is torch.ops.prim.device.default:
        return CPU
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours, name = [x for x in tensors if isinstance(x, Pretended)], func.overloadpacket.__name__
    others = [x for x in tensors if not isinstance(x, Pretended) and x.ndim > 0]
    if ours and others and name not in ANYWHERE and not (name in INDEXED and isinstance(args[0], Pretended)):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, and some are on the CPU")
    on_gpu = bool(ours) or is_gpu(kwargs.get("device"))
    if name == "copy_":
        on_gpu = isinstance(args[0], Pretended)
    own = {"device": CPU} if kwargs.get("device") is not None else {}
    own |= {"pin_memory": False} if "pin_memory" in kwargs else {}
    result = func(*tree_map(plain, args), **tree_map(plain, dict(kwargs) | own))
    given = {id(plain(x)): x for x in tensors}  # what works in place returns what it was given

    def wrapped(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, Pretended):
            return x
        return given.get(id(x)) if id(x) in given else Pretended(x) if on_gpu else x

    return tree_map(wrapped, result)


def is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class Dispatch(TorchDispatchMode):
    """Sees the operators that have no pretended tensor yet, such as `torch.zeros(3, device="cuda")`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_gpu(kwargs.get("device")) or any(isinstance(x, Pretended) for x in tree_leaves((args, kwargs))):
            return run(func, args, kwargs)
        return func(*args, **kwargs)


def moved(self, *args, **kwargs):
    """`Tensor.to`, which knows the pretended GPU."""
    device, rest = kwargs.pop("device", None), []
    kwargs.pop("non_blocking", None)
    for x in args:
        if isinstance(x, str | torch.device):
            device = x
        elif isinstance(x, torch.Tensor):
            device, rest = x.device, [*rest, x.dtype]
        elif x is not None and not isinstance(x, bool):
            rest.append(x)
    made = _to(self, *rest, **kwargs) if rest or kwargs else self
    if device is None or is_gpu(device) == isinstance(made, Pretended):
        return made
    return Enter.apply(made) if is_gpu(device) else Leave.apply(made)


def converted(self, fn, recurse=True):
    """`Module._apply`, which gives a module new parameters. PyTorch's own exchanges their storages."""
    for child in self.children():
        child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                self._parameters[name] = nn.Parameter(fn(parameter.detach()), requires_grad=parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def created(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`torch.tensor` or `torch.as_tensor`, which would look for a driver."""

    def create(data, *args, device=None, **kwargs):
        made = data.to(**kwargs) if isinstance(data, Pretended) else make(data, *args, **kwargs)
        return made if device is None else made.to(device)

    return create


class Generator(torch._C.Generator):
    """A generator that says which device it is for."""

    def __new__(cls, device="cpu"):
        made = torch._C.Generator.__new__(cls, "cpu")
        made.meant = CUDA if is_gpu(device) else CPU
        return made

    def __init__(self, device="cpu"):
        pass

    device = property(lambda self: self.meant)

    def manual_seed(self, seed):
        torch._C.Generator.manual_seed(self, seed)
        return self


@pytest.fixture
def gpu(monkeypatch) -> Iterator[None]:
    """Within the test, `--device cuda` is the pretended GPU."""
    begin = torch.autocast.__init__
    replaced = {
        "torch.Tensor.to": moved,
        "torch.nn.Module._apply": converted,
        "torch.tensor": created(torch.tensor),
        "torch.as_tensor": created(torch.as_tensor),
        "torch.Generator": Generator,
        # its C++ code makes a tensor on what it takes for the tensor's device
        "torch.nn.functional.one_hot": lambda x, classes: _one_hot(plain(x), classes).to(x.device),
        "torch.autocast.__init__": lambda self, device, *args, **kwargs: begin(self, "cpu", *args, **kwargs),
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.set_device": lambda *_: None,
        "torch.cuda.synchronize": lambda *_: None,
        "torch.cuda.is_current_stream_capturing": lambda: False,  # optimizers of PyTorch 2.11 ask the driver
        "torch.cuda.get_device_name": lambda *_: "a pretended GPU",
        "torch.cuda.mem_get_info": lambda *_: (10**9, 10**9),
        "torch.cuda.reset_peak_memory_stats": lambda *_: None,
        "torch.cuda.max_memory_allocated": lambda *_: 10**6,
        "torch.cuda.get_rng_state": lambda *_: torch.get_rng_state(),
        "torch.cuda.set_rng_state": lambda *_: None,
    }
    torch._C._ensureCUDADeviceGuardSet()
    for name, value in replaced.items():
        monkeypatch.setattr(name, value)
    with Dispatch():
        yield
