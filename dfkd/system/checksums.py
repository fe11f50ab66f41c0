"""Checksums: of files, as entries of a manifest, and of a manifest or a request itself, as a field of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd.system.errors import RequestError
from dfkd.system.files import hash_file, hash_of
from dfkd.system.records import Count

CHECKSUM = "checksum"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON or TOML table with the hash of all its other fields in the field `checksum`."""
    plain = json.loads(json.dumps({name: item for name, item in value.items() if name != CHECKSUM}, allow_nan=False))
    return {CHECKSUM: hash_of(plain), **plain}


def unsealed(value: Any) -> dict[str, Any]:
    """The table without its checksum. Raises: ValueError where it has none, or the fields are not those written."""
    if not isinstance(value, Mapping):
        raise ValueError("it is not a table")
    if CHECKSUM not in value:
        raise ValueError(f"it has no {CHECKSUM}: it was damaged or edited")
    plain = {name: item for name, item in value.items() if name != CHECKSUM}
    if value[CHECKSUM] != hash_of(plain):
        raise ValueError("its checksum differs: it was damaged or edited")
    return plain


@dataclass(frozen=True)
class Entry:
    """What was written of a file: its size in bytes and its SHA-256."""

    bytes: Count
    sha256: str


def entry(path: Path) -> dict[str, Any]:
    """The table of an `Entry`."""
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def check_size(path: Path, written: Entry, hint: str = "") -> int:
    """The file's size in bytes. Raises: RequestError where the file is gone or has another size than was `written`.

    `hint` is the end of the message.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}{hint}") from None
    if size != written.bytes:
        raise RequestError(f"{path} is damaged: it has {size:,} bytes, {written.bytes:,} were written{hint}")
    return size


def check_file(path: Path, written: Entry, hint: str = "") -> int:
    """Read a whole file again; its size. Raises: RequestError where it is not what was `written`."""
    size = check_size(path, written, hint)
    if hash_file(path) != written.sha256:
        raise RequestError(f"{path} is damaged: its SHA-256 is not that of what was written{hint}")
    return size
