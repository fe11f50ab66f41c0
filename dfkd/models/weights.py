"""Weights from a file: safetensors, or a pickle of tensors that runs no code."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd.errors import RequestError, nearest

WEIGHT_SUFFIXES = (".pt", ".pth", ".th", ".safetensors")
_INSIDE = ("state_dict", "model", "net")  # where training scripts put the state dict in a checkpoint
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # what DataParallel, torch.compile and wrappers put before it


def require_file(path: Path, suffixes: Sequence[str]) -> None:
    """Raise RequestError, with the nearest sibling's name, where `path` is not a file."""
    if path.is_dir():
        raise RequestError(f"{str(path)!r} is a folder, not a file ({', '.join(suffixes)})")
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir() if p.suffix in suffixes] if path.parent.is_dir() else []
        where = "" if path.parent.is_dir() else f" (nor a folder {str(path.parent)!r})"
        raise RequestError(f"there is no file {str(path)!r}{where}{nearest(path.name, siblings)}")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt`, `.pth`, `.th` or `.safetensors` file on the cpu, bare or inside state_dict/model/net.

    Raises: RequestError for a file that is missing, unreadable, of another kind, or holds pickled Python objects.
    """
    if path.suffix not in WEIGHT_SUFFIXES:
        raise RequestError(f"weights {str(path)!r} are not one of {', '.join(WEIGHT_SUFFIXES)}")
    require_file(path, WEIGHT_SUFFIXES)
    content = _read(path)
    while isinstance(content, Mapping) and (inner := [k for k in _INSIDE if isinstance(content.get(k), Mapping)]):
        content = content[inner[0]]
    if not isinstance(content, Mapping):
        raise RequestError(f"weights {str(path)!r} hold a {type(content).__name__}, not a state dict")
    foreign = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if foreign or not content:
        what = f"other things than tensors ({_few(foreign)})" if foreign else "no tensors"
        raise RequestError(f"weights {str(path)!r} hold {what}; save model.state_dict() alone, or under 'state_dict'")
    swollen = [key for key, value in content.items() if value.numel() > 1 and not _is_stored(value)]
    if swollen:
        raise RequestError(f"weights {str(path)!r} claim more numbers than they hold ({_few(swollen)}); save them anew")
    return dict(content)


def state_to_write(module: nn.Module) -> dict[str, Tensor]:
    """The state of `module` as safetensors takes it: on the cpu, each name with memory of its own, tied weights too."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}


def load_weights(module: nn.Module, path: Path) -> None:
    """Put the weights of a file into `module`; prefixes such as `module.` that all keys share are stripped.

    Raises: RequestError as `read_state_dict` does, and where keys or shapes do not fit.
    """
    load_state(module, read_state_dict(path), path)


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Put the tensors read from `source` into `module`.

    Raises: RequestError naming the missing, the unexpected and the mis-shaped keys.
    """
    state = fit_prefix(state, module)
    try:
        module.load_state_dict(state)  # strict, and a module's own renaming of old keys takes part
    except RuntimeError as error:
        why = _mismatch(module.state_dict(), state) or str(error).partition("\n")[0]
        raise RequestError(f"weights {str(source)!r} do not fit the model: {why}; check its name and options") from None


def fit_prefix(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The state dict without as many shared prefixes as make it fit `module` best (whose own keys may begin so)."""
    own = module.state_dict().keys()
    candidates = [dict(state)]
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in candidates[-1])), None):
        candidates.append({key.removeprefix(prefix): value for key, value in candidates[-1].items()})
    return max(candidates, key=lambda candidate: len(own & candidate.keys()))


def _read(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():  # of pickle protocols, before it refuses them
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file can raise anything at all from the readers
        # torch's own text begins with the advice to load the file without this protection
        said = str(error).partition("Weights only load failed")
        mend = "save model.state_dict() instead, or use safetensors"
        if "GLOBAL " in said[2]:
            name = said[2].partition("GLOBAL ")[2].split()[0]
            raise RequestError(
                f"weights {str(path)!r} hold pickled Python objects ({name}), which could run code: {mend}"
            ) from None
        if "TorchScript" in said[0]:
            raise RequestError(f"weights {str(path)!r} hold a TorchScript program: {mend}") from None
        if said[1]:
            what = _few(re.findall(r"^Unsupported .*$", said[2], re.MULTILINE) or ["no pickle of tensors"])
            raise RequestError(f"weights {str(path)!r} cannot be read ({what}): {mend}") from None
        reason = said[0].partition("\n")[0] or type(error).__name__
        raise RequestError(f"weights {str(path)!r} cannot be read: {reason}") from error


def _is_stored(value: Tensor) -> bool:
    """Whether a dense tensor has as many numbers in its storage as in its shape: a repeated one fills any memory."""
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        return True
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _mismatch(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    # BatchNorm's counter came later than many checkpoints; torch fills it in
    missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in own]
    shapes = [
        f"{key} {list(given[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in given and own[key].shape != given[key].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", shapes))
    return "; ".join(f"{len(keys)} {kind} ({_few(keys)})" for kind, keys in kinds if keys)


def _few(keys: Sequence[str], show: int = 3) -> str:
    return ", ".join(keys[:show]) + (", ..." if len(keys) > show else "")
