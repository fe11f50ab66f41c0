"""Checksums: of files, as entries of a manifest, and of a manifest or a request itself, as a field of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfkd.system.errors import RequestError
from dfkd.system.files import hash_file, hash_of

CHECKSUM = "checksum"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON or TOML table with the hash of all its other fields in the field `checksum`."""
    plain = json.loads(json.dumps({name: item for name, item in value.items() if name != CHECKSUM}, allow_nan=False))
    return {CHECKSUM: hash_of(plain), **plain}


def unsealed(value: Any) -> dict[str, Any]:
    """The table without its checksum. One that has none is from a version that wrote none, and taken as it is.

    Raises: ValueError where the fields are not those that were written.
    """
    if not isinstance(value, Mapping):
        raise ValueError("it is no table")
    plain = {name: item for name, item in value.items() if name != CHECKSUM}
    if CHECKSUM in value:
        if value[CHECKSUM] != hash_of(plain):
            raise ValueError("its checksum differs: it was damaged or edited")
    elif value:
        first, *others = value.items()  # `sealed` puts it first
        if first[1] == hash_of(dict(others)):
            raise ValueError(f"{first[0]!r} was {CHECKSUM!r}: it was damaged or edited")
    return plain


def entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: its size in bytes and its SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def check_fields(value: Any, fields: Mapping[str, tuple[type, ...]]) -> None:
    """Compare the fields of nested tables, written `content.options`, with the types that each may have.

    Raises: ValueError, naming the field, where one is missing (and NoneType is not among its types) or of another type.
    """
    for name, kinds in fields.items():
        found: Any = value
        for key in name.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if type(found) not in kinds:
            raise ValueError(f"it lacks {name}" if found is None else f"of another type is {name}")


def check_size(path: Path, written: Mapping[str, Any], hint: str = "") -> int:
    """The file's size in bytes. Raises: RequestError where the file is gone or has another size than was `written`.

    `hint` is the end of the message.
    """
    fields: dict[str, tuple[type, ...]] = {"sha256": (str, type(None)), "bytes": (int, type(None))}
    try:
        check_fields(written, fields)
        size = path.stat().st_size
    except ValueError as error:
        raise RequestError(f"{path} cannot be checked: what was written of it is damaged ({error}){hint}") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}{hint}") from None
    if size != written.get("bytes", size):
        raise RequestError(f"{path} is damaged: it has {size:,} bytes, {written['bytes']:,} were written{hint}")
    return size


def check_file(path: Path, written: Mapping[str, Any], hint: str = "") -> int:
    """Read a whole file again; its size. Raises: RequestError where it is not what was `written`."""
    size = check_size(path, written, hint)
    if hash_file(path) != written.get("sha256"):
        raise RequestError(f"{path} is damaged: its SHA-256 is not that of what was written{hint}")
    return size
