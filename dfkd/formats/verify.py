"""`dfkd inspect --verify`: every byte of a selection, a run or a pipeline's folder against its checksums."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dfkd.config.tables import load_toml
from dfkd.formats.manifest import MANIFEST, read_manifest
from dfkd.system.checksums import CHECKSUM, check_file, unsealed
from dfkd.system.errors import RequestError

Entry = tuple[Path, Mapping[str, Any] | None]
"""A file and what was written of it, size and SHA-256; None where the file is a table with a checksum of its own, which
was compared when it was read; nothing where an older version wrote no checksum."""
_RUN = ("config.toml", "result.json", "checkpoint")


def verify(folder: Path) -> str:
    """Read everything in a folder again; what was checked, in one line.

    Raises: RequestError that names the files that are not what was written, or says that there is nothing to verify.
    """
    entries = list(_entries(folder))
    wrong: list[str] = []
    read = 0
    for path, written in entries:
        try:
            read += check_file(path, written) if written else path.stat().st_size
        except (RequestError, OSError) as error:
            wrong.append(str(error))
    if wrong:
        count = f"{len(wrong):,} of {len(entries):,} files in {folder} are not what was written"
        raise RequestError(f"{count}: {'; '.join(wrong[:3])}{', ...' if wrong[3:] else ''}")
    bare = [path.name for path, written in entries if written is not None and not written]
    more = f"; written without checksums by an older version, and not compared: {', '.join(bare)}" if bare else ""
    return f"{folder}: {len(entries):,} files, {read:,} bytes, as they were written{more}"


def _entries(folder: Path) -> Iterator[Entry]:
    """The files of a folder, with those in a pipeline's selections and runs."""
    if (folder / MANIFEST).exists():
        yield from _of_selection(folder)
        return
    if (folder / _RUN[0]).exists():
        yield from _of_run(folder)
        return
    parts = [*sorted(folder.glob(f"samples/*/{MANIFEST}")), *sorted(folder.glob(f"runs/*/{_RUN[0]}"))]
    if not parts:
        raise RequestError(f"{folder} is no selection, no run and no pipeline's folder: there is nothing to verify")
    for part in parts:
        yield from _entries(part.parent)


def _of_selection(folder: Path) -> Iterator[Entry]:
    manifest = read_manifest(folder)
    yield folder / MANIFEST, None if manifest["format"] > 1 else {}
    for file in (*manifest["files"], *manifest.get("beside", ())):
        yield folder / file["name"], file


def _of_run(folder: Path) -> Iterator[Entry]:
    """A run's files; of an unfinished one those that there are: it has neither student nor result."""
    config, result, checkpoint = (folder / name for name in _RUN)
    yield config, _own(config, load_toml(config))
    if result.exists():
        value = _json(result)
        yield result, _own(result, value)
        files = value.get("files") or {"student.safetensors": {}, "metrics.jsonl": {}}
        yield from ((folder / name, written) for name, written in files.items())
    if checkpoint.exists():
        progress = checkpoint / "progress.json"
        value = _json(progress)
        yield progress, _own(progress, value)
        yield checkpoint / "state.pt", value.get("state", {})


def _own(path: Path, value: Any) -> dict[str, Any] | None:
    try:
        unsealed(value)
    except ValueError as error:
        raise RequestError(f"{path} is damaged: {error}") from None
    return None if CHECKSUM in value else {}


def _json(path: Path) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(f"{path} is damaged: it is no table")
    return value
