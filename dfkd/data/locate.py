"""Readers for the text of a DATA. The format follows from the text and from the files at the path."""

import glob
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, TypeVar

from dfkd.data.readers.folder import FolderReader
from dfkd.data.readers.hub import open_hub
from dfkd.data.readers.npz import NpzReader, count_images
from dfkd.data.readers.reader import IMAGE_SUFFIXES, NoImages, Reader
from dfkd.data.readers.table_files import is_saved, open_arrow, open_parquet, open_saved
from dfkd.data.readers.tar import TarReader
from dfkd.data.readers.vision import open_vision
from dfkd.system import remote
from dfkd.system.console import say
from dfkd.system.errors import RequestError, nearest, reason
from dfkd.system.files import hash_of, user_path
from dfkd.system.portable import portable
from dfkd.system.remote import RemoteFile, is_remote

_FILES: dict[str, Callable[[Path], Reader]] = {
    ".npz": NpzReader,
    ".parquet": open_parquet,
    ".arrow": open_arrow,
    ".tar": TarReader,
}
_HINTS = {
    (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"): "unpack it to a plain .tar: images are compressed already",
    (".zip", ".7z", ".rar"): "unpack it and name the folder",
    tuple(IMAGE_SUFFIXES): "it is one image; name the folder that holds the images",
    (".npy",): "write it with np.savez(..., images=..., labels=...)",
}
_SCHEMES: dict[str, Callable[[str], tuple[str, Reader]]] = {"hf": open_hub, "torchvision": open_vision}
_FORMS = (
    "a folder of images or shards, .npz, .parquet, .arrow, .tar, hf:REPO[/CONFIG][@REVISION][:SPLIT], "
    "torchvision:NAME[:SPLIT], or the URI of a .tar or .parquet, such as s3://BUCKET/x.tar"
)
MOST_FILES = 1_000_000
"""Largest number of files that braces may stand for. A larger number is a typing error and would exhaust the memory."""
_Named = TypeVar("_Named")
_Opened = TypeVar("_Opened")
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Data:
    """One DATA: its name without its folder, and its readers.

    Each reader comes with the name with which its origins begin.
    """

    name: str
    parts: list[tuple[str, Reader]]
    empty: tuple[str, ...] = ()
    """Names of files and folders without images."""

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the content, as JSON. Names are included, because origins begin with them."""
        images = sum(len(reader) for _, reader in self.parts)
        if len(self.parts) == 1 and self.parts[0][0] == self.name:
            return {"name": self.name, "images": images, **self.parts[0][1].identity}
        content = hash_of([[name, len(reader), reader.identity] for name, reader in self.parts])
        return {"name": self.name, "images": images, "files": len(self.parts), "content": content}


GivenData = str | Data
"""Text of a DATA, or an opened DATA."""


def locate(text: str) -> Data:
    """Open the DATA that a text names. Raises: RequestError if the DATA does not exist or cannot be read."""
    scheme = _scheme(text)
    if scheme is not None:
        name, reader = _SCHEMES[scheme](text)
        return Data(name, [(name, reader)])
    member = member_of(text)
    mark = f"#{member}" if member else ""
    paths: Sequence[Path | RemoteFile] = _remote(text, member) if is_remote(text) else _existing(text)
    if len(paths) == 1:
        # a link keeps its own name, '.' gets the folder's name, and the user's home folder becomes `~`
        name = paths[0].name if isinstance(paths[0], RemoteFile) else Path(portable(os.path.abspath(paths[0]))).name
        return Data(name + mark, [(name, _open(paths[0], member))])
    absolute = [Path(path.path) if isinstance(path, RemoteFile) else path.absolute() for path in paths]
    top = os.path.commonpath([path.parent for path in absolute])
    names = [portable(path.relative_to(top).as_posix()) for path in absolute]
    readers = with_images(paths, lambda path: _open(path, member))
    parts = [(name, reader) for name, reader in zip(names, readers, strict=True) if reader is not None]
    empty = tuple(name for name, reader in zip(names, readers, strict=True) if reader is None)
    return Data(portable(Path(text).name), parts, empty)


def with_images(named: Sequence[_Named], opened: Callable[[_Named], _Opened]) -> list[_Opened | None]:
    """Return the result of `opened` for each item, or None for items without images. One note names those items.

    Raises: NoImages if no item has images.
    """
    found: list[_Opened | None] = []
    empty: list[NoImages] = []
    for one in named:
        try:
            found.append(opened(one))
        except NoImages as error:
            found.append(None)
            empty.append(error)
    if len(empty) == len(named):
        more = f"; nor do the {len(empty) - 1} others" if len(empty) > 1 else ""
        raise NoImages(f"{empty[0]}{more}")
    if empty:
        more = f"; nor do {len(empty) - 1} others" if len(empty) > 1 else ""
        say(f"note: {empty[0]}{more}; {len(empty)} of {len(named)} files or folders are left out")
    return found


def member_of(text: str) -> str:
    """Return the member of each sample that a DATA names, such as `jpg` of `pool.tar#jpg`, or an empty text."""
    path, mark, member = text.rpartition("#")
    return member if mark and path.lower().endswith(".tar") and not user_path(text).exists() else ""


def _remote(text: str, member: str) -> list[RemoteFile]:
    """Return the object store's files that a URI names. Raises: RequestError if there are none or of another format."""
    files = remote.find(text, _brace(text.removesuffix(f"#{member}") if member else text))
    for file in files:
        if file.suffix.lower() not in (".tar", ".parquet"):
            raise RequestError(
                f"{file.uri!r}: only .tar and .parquet are read from an object store; copy other files to this "
                "machine, and give a selection to --samples"
            )
    return files


def _open(path: Path | RemoteFile, member: str) -> Reader:
    """Return the reader of one existing path."""
    if isinstance(path, RemoteFile):
        return TarReader(path, member) if path.suffix.lower() == ".tar" else open_parquet(path)
    try:
        if member and path.suffix.lower() == ".tar":
            return TarReader(path, member)
        if path.is_dir():
            return open_saved(path) if is_saved(path) else FolderReader(path)
        if path.suffix.lower() in _FILES:
            return _FILES[path.suffix.lower()](path)
    except OSError as error:
        raise RequestError(f"{str(path)!r} cannot be read: {reason(error)}") from error
    hint = next((hint for ends, hint in _HINTS.items() if path.name.lower().endswith(ends)), None)
    raise RequestError(f"{str(path)!r} is in no known format{f'; {hint}' if hint else f': {_FORMS}'}")


def check_there(text: str) -> None:
    """Raise RequestError if a DATA names local paths and one of them does not exist. Other DATA is not checked."""
    if _scheme(text) is None and not is_remote(text):
        _existing(text)


def count_quickly(text: str) -> int | None:
    """Return the number of images that the headers of a DATA state; None if it must be searched for images."""
    counts = {".npz": count_images, ".parquet": lambda path: len(open_parquet(path))}
    paths = paths_of(text)
    if not paths or not all(path.suffix.lower() in counts for path in paths):
        return None
    try:
        return sum(counts[path.suffix.lower()](path) for path in paths)
    except (RequestError, OSError):  # the stage that opens it says what is wrong
        return None


def paths_of(text: str) -> list[Path]:
    """Return the local files and folders that a DATA names. The result is empty for other or missing DATA."""
    try:
        return _existing(text) if text and _scheme(text) is None and not is_remote(text) else []
    except RequestError:
        return []


def _scheme(text: str) -> str | None:
    scheme = text.partition(":")[0]
    return scheme if scheme in _SCHEMES and scheme != text and not is_remote(text) else None


def _existing(text: str) -> list[Path]:
    """Return the existing paths that a text names: the path itself, or all paths that its brace ranges and globs match.

    Raises: RequestError if there are none.
    """
    if member := member_of(text):
        text = text.removesuffix(f"#{member}")
    whole = user_path(text)
    if text and whole.exists():
        return [whole]
    paths: list[Path] = []
    for pattern in _brace(str(whole) if text else ""):
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise RequestError(_missing(pattern, text))
        paths += map(Path, found)
    return paths


def _brace(text: str) -> list[str]:
    """Return all expansions of braces as in `x-{000..002}.{a,b}`, in order. Ranges keep leading zeros."""
    pieces = _BRACES.split(text)
    choices = [[piece] if i % 2 == 0 else _alternatives(piece, text) for i, piece in enumerate(pieces)]
    if math.prod(map(len, choices)) > MOST_FILES:
        raise RequestError(f"{text!r} stands for more than {MOST_FILES:,} files")
    return ["".join(choice) for choice in product(*choices)]


def _alternatives(inside: str, text: str) -> list[str]:
    ends = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside)
    if not ends:
        return inside.split(",") if "," in inside else ["{" + inside + "}"]
    first, last = ends.groups()
    if int(first) > int(last):
        raise RequestError(f"{text!r}: the range {{{inside}}} is empty; write the smaller number first")
    if int(last) - int(first) >= MOST_FILES:
        raise RequestError(f"{text!r}: the range {{{inside}}} has more than {MOST_FILES:,} numbers")
    return [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]


def _missing(pattern: str, text: str) -> str:
    """Return the error message for a missing path, with the most similar existing name."""
    path = Path(pattern)
    said = f"{text!r}: there is no {pattern!r}" if pattern != text else f"there is no file or folder {text!r}"
    if glob.has_magic(pattern):
        return f"no file matches {text!r}"
    if ":" in text and not path.parent.is_dir():
        return f"{said}; DATA is {_FORMS}"
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    if parent != path.absolute().parent:
        lost = path.absolute().relative_to(parent).parts[0]
        return f"{said}: {str(parent)!r} has no {lost!r}{_beside(parent, lost)}"
    return said + _beside(parent, path.name)


def _beside(folder: Path, name: str) -> str:
    with os.scandir(folder) as entries:
        hint = nearest(name, [entry.name for entry in islice(entries, 10_000)], show=0)
    return hint if "did you mean" in hint else ""
