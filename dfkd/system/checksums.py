"""Checksums of files (entries of a manifest) and of JSON or TOML tables (a field of the table itself)."""

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
    """Return a JSON or TOML table with a further field `checksum`, the hash of all other fields."""
    plain = json.loads(json.dumps({name: item for name, item in value.items() if name != CHECKSUM}, allow_nan=False))
    return {CHECKSUM: hash_of(plain), **plain}


def unsealed(value: Any) -> dict[str, Any]:
    """Return a table without its checksum. Raises: ValueError if the checksum is missing or wrong."""
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
    """Size in bytes and SHA-256 of a file, recorded when the file was written."""

    bytes: Count
    sha256: str


def entry(path: Path) -> dict[str, Any]:
    """Return the table of a file's `Entry`."""
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def check_size(path: Path, written: Entry, hint: str = "") -> int:
    """Return a file's size in bytes after comparing it with the size that was `written`.

    `hint` is the end of the error message.
    Raises: RequestError if the file is missing or has another size.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}{hint}") from None
    if size != written.bytes:
        raise RequestError(f"{path} is damaged: it has {size:,} bytes, {written.bytes:,} were written{hint}")
    return size


def check_file(path: Path, written: Entry, hint: str = "") -> int:
    """Return a file's size in bytes after a check of its hash. Raises: RequestError if the file was changed."""
    size = check_size(path, written, hint)
    if hash_file(path) != written.sha256:
        raise RequestError(f"{path} is damaged: its SHA-256 is not that of what was written{hint}")
    return size
