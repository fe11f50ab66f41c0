"""Weights from a file: safetensors, or a pickle of tensors that runs no code. The content decides, not the name."""

import json
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.models.checkpoint import choose, is_state_dict, usual
from dfkd.models.state import (
    State,
    fit_prefix,
    part,
    share,
    under,
    usual_prefix,
)
from dfkd.system.console import say
from dfkd.system.errors import RequestError, first_line, nearest
from dfkd.system.text import few

WEIGHT_SUFFIXES = (".pt", ".pth", ".th", ".safetensors", ".ckpt", ".bin", ".tar")
"""Usual suffixes of weights files. A file with another suffix is read too."""
_BESIDE = (
    "argparse.Namespace",
    *(f"pathlib.{kind}Path" for kind in ("Posix", "PurePosix", "Windows", "PureWindows")),
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
)
"""Types of settings, paths and numbers that training scripts store beside weights."""
INDEX = ".index.json"
"""End of the name of an index, which lists the files that hold parts of one state dict."""


class Unread:
    """A stand-in for the types of `_BESIDE`. It drops their content, and no type that the file names is created."""

    def __init__(self, *content: object) -> None:
        """Accept any arguments."""

    def __setstate__(self, content: object) -> None:
        """Accept any state."""


def names_weights(text: str) -> bool:
    """Return whether a MODEL without @ is the name of a weights file, and not of a module to import."""
    name, _, options = text.partition(":")
    return Path((name if "=" in options else text).partition("#")[0]).suffix.lower() in WEIGHT_SUFFIXES


def require_file(path: Path, suffixes: Sequence[str]) -> None:
    """Raise RequestError, with the most similar name in the folder, unless `path` is a file."""
    if path.is_dir():
        raise RequestError(f"{str(path)!r} is a folder, not a file ({', '.join(suffixes)})")
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir() if p.suffix in suffixes] if path.parent.is_dir() else []
        where = "" if path.parent.is_dir() else f" (nor a folder {str(path.parent)!r})"
        raise RequestError(f"there is no file {str(path)!r}{where}{nearest(path.name, siblings)}")


def read_state_dict(path: Path, module: nn.Module | None = None) -> dict[str, Any]:
    """Read the tensors of a weights file to the CPU: a bare state dict, or the one that fits `module` best.

    `FILE#KEY` names the dictionary. A note tells if it comes from an unusual key, and which others would fit.
    Raises: RequestError for a file that is missing, unreadable, of another kind, or holds pickled Python objects.
    """
    check_there(path)
    path, key = _with_key(path)
    content = _read(path)
    fits = None if module is None else lambda state: share(state, module)
    choice = choose(content, fits, key)
    if key and choice.state is None:
        prefixed = choose(content, fits).state or {}
        if inside := part(prefixed, f"{key}."):
            return inside
        known = nearest(key, choice.others)
        raise RequestError(f"weights {str(path)!r} hold no dictionary of tensors {key!r}{known}")
    found = usual(content) if choice.state is None else choice.state
    if not isinstance(found, Mapping):
        raise RequestError(f"weights {str(path)!r} hold a {type(found).__name__}, not a state dict")
    if not is_state_dict(found):
        foreign = [str(k) for k, v in found.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
        what = f"other things than tensors ({few(foreign)})" if foreign else "no tensors"
        raise RequestError(f"weights {str(path)!r} hold {what}; save model.state_dict() alone, or under 'state_dict'")
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    quantized = [name for name, value in tensors.items() if value.is_quantized]
    if quantized:
        raise RequestError(f"weights {str(path)!r} hold quantized tensors ({few(quantized)}); save the float network")
    swollen = [name for name, value in tensors.items() if value.numel() > 1 and not _is_stored(value)]
    if swollen:
        raise RequestError(f"weights {str(path)!r} claim more numbers than they hold ({few(swollen)}); save them again")
    if choice.unusual:
        say(
            f"note: weights {path.name!r}: the {len(found):,} tensors of {choice.name!r} are taken, which fit the model"
        )
    if choice.others:
        other = choice.others[0]
        say(
            f"note: weights {path.name!r} also hold {few(choice.others)} (averaged weights, if EMA); "
            f"{path.name}#{other} takes {'these' if len(choice.others) == 1 else other}"
        )
    return part(found, "") if module is None else _of_network(found, module, path)


def check_there(path: Path) -> None:
    """Raise RequestError if a weights file, or the file of `FILE#KEY`, does not exist or has no name of weights."""
    path, _ = _with_key(path)
    if path.is_dir() and any(path.glob("*.distcp")):
        convert = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} {path.name}.pt"
        raise RequestError(f"weights {str(path)!r} are a checkpoint in parts; make one file of it: {convert}")
    if path.suffix not in WEIGHT_SUFFIXES and (path.suffix == ".onnx" or not path.exists()):
        raise RequestError(f"weights {str(path)!r} are not one of {', '.join(WEIGHT_SUFFIXES)}")
    require_file(path, WEIGHT_SUFFIXES)


def _of_network(state: State, module: nn.Module, path: Path) -> dict[str, Any]:
    """Return the tensors under the prefix of the network's keys, if there are other tensors too."""
    prefixes = under(state, module)
    whole = share(fit_prefix(state, module), module)
    if not prefixes or (whole == 1 and not under(fit_prefix(state, module), module)):
        return part(state, "")
    first, *others = (prefix.removesuffix(".") for prefix in prefixes)
    if others and not usual_prefix(prefixes[0]):
        raise RequestError(
            f"weights {str(path)!r} hold the model's tensors {len(prefixes)} times (under {few([first, *others])}); "
            f"say which: {path.name}#{first}"
        )
    inside = part(state, prefixes[0])
    left = [name for name in state if not name.startswith(prefixes[0])]
    if left:
        more = f"; {path.name}#{others[0]} takes {others[0]!r}" if others else ""
        say(
            f"note: weights {path.name!r}: the {len(inside):,} tensors under {first!r} are taken, which fit the model; "
            f"left out: {len(left):,} ({few(left)}){more}"
        )
    return inside


def _with_key(path: Path) -> tuple[Path, str]:
    """Split `FILE#KEY` into file and key. A file whose own name has a # is not split."""
    name, _, key = path.name.rpartition("#")
    return (path, "") if not name or path.exists() else (path.with_name(name), key)


def _read(path: Path) -> object:
    """Read the content of a file without executing anything in it."""
    try:
        if path.name.endswith(INDEX):
            return _joined(path)
        with path.open("rb") as file:
            head, size = file.read(512), path.stat().st_size
        if other := _other_kind(head):
            raise RequestError(f"weights {str(path)!r} cannot be read: {other}")
        named_so = path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80"))
        if named_so or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8):
            from safetensors.torch import load_file

            return load_file(path)
        with path.open("rb") as file, warnings.catch_warnings(), _settings_unread():
            warnings.simplefilter("ignore")  # warnings about pickle protocols, before the error
            return torch.load(file, weights_only=True, map_location="cpu")
    except RequestError:
        raise
    except Exception as error:  # the readers of a damaged file can raise any exception
        # torch's message begins with the advice to switch this protection off
        said = str(error).partition("Weights only load failed")
        hint = "save model.state_dict() instead, or use safetensors"
        if "GLOBAL " in said[2]:
            name = said[2].partition("GLOBAL ")[2].split()[0]
            raise RequestError(
                f"weights {str(path)!r} hold pickled Python objects ({name}), which could run code: {hint}"
            ) from None
        if "TorchScript" in said[0]:
            raise RequestError(f"weights {str(path)!r} hold a TorchScript program: {hint}") from None
        if said[1]:
            what = few(re.findall(r"^Unsupported .*$", said[2], re.MULTILINE) or ["no pickle of tensors"])
            raise RequestError(f"weights {str(path)!r} cannot be read ({what}): {hint}") from None
        reason = first_line(error)
        if reason.startswith("[enforce fail"):
            reason = "it is a zip file, but none that torch.save writes"
        if head.startswith(b"PK") and not zipfile.is_zipfile(path):
            reason = "the file is cut short or damaged; fetch it again"
        raise RequestError(f"weights {str(path)!r} cannot be read: {reason}") from error


def _joined(path: Path) -> dict[str, Any]:
    """Read the tensors of all files that an index names. They must be in the folder of the index."""
    names = {*json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()}
    whole: dict[str, Any] = {}
    for name in sorted(names):
        if not isinstance(name, str) or Path(name).name != name or name.endswith(INDEX):
            raise RequestError(f"weights {str(path)!r} name {name!r}, which is not a file beside them")
        require_file(path.with_name(name), WEIGHT_SUFFIXES)
        found = _read(path.with_name(name))
        if not is_state_dict(found):
            raise RequestError(f"weights {str(path.with_name(name))!r} are not a part of a state dict")
        whole |= found
    return whole


def _is_stored(value: Tensor) -> bool:
    """Return whether a dense tensor's storage has as many values as its shape.

    An expanded tensor needs little storage in the file, and could fill the memory when copied.
    """
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        return True
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _other_kind(head: bytes) -> str | None:
    """Return what a file is that is often mistaken for weights, from its first bytes; None for other files."""
    if not head:
        return "the file is empty; fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer; run git lfs pull in its repository"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page; download the file itself"
    return None


def _settings_unread() -> AbstractContextManager[None]:
    """Return a context in which torch loads the types of `_BESIDE` too."""
    context: AbstractContextManager[None] = torch.serialization.safe_globals([(Unread, name) for name in _BESIDE])
    return context
