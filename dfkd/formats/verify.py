"""Verification of every byte of a selection, a run or a pipeline's folder, for `dfkd inspect --verify`."""

from collections.abc import Iterator
from pathlib import Path

from dfkd.formats.manifest import MANIFEST, read_manifest
from dfkd.formats.run_records import (
    CHECKPOINT,
    CONFIG,
    PROGRESS,
    RESULT,
    STATE,
    Finished,
    parse_progress,
    read_request,
    read_result,
)
from dfkd.system.checksums import Entry, check_file
from dfkd.system.errors import RequestError, reason

Written = tuple[Path, Entry | None]
"""File and its recorded entry. The entry is None for a table with a checksum of its own, which reading compares."""


def verify(folder: Path) -> str:
    """Read all files in a folder again and compare them with their checksums. Returns: a summary in one line.

    Raises: RequestError, which names changed files, or says that the folder has no files to verify.
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
    return f"{folder}: {len(entries):,} files, {read:,} bytes, as they were written"


def _entries(folder: Path) -> Iterator[Written]:
    """Yield the files of a folder, including those of a pipeline's selections and runs."""
    if (folder / MANIFEST).exists():
        yield from _of_selection(folder)
        return
    if (folder / CONFIG).exists():
        yield from _of_run(folder)
        return
    parts = [*sorted(folder.glob(f"samples/*/{MANIFEST}")), *sorted(folder.glob(f"runs/*/{CONFIG}"))]
    if not parts:
        raise RequestError(f"{folder} is not a selection, a run or a pipeline's folder: there is nothing to verify")
    for part in parts:
        yield from _entries(part.parent)


def _of_selection(folder: Path) -> Iterator[Written]:
    manifest = read_manifest(folder)
    yield folder / MANIFEST, None
    yield from ((folder / file.name, file) for file in (*manifest.files, *manifest.beside))


def _of_run(folder: Path) -> Iterator[Written]:
    """Yield the files of a run. An unfinished run has no student and no result."""
    read_request(folder)
    yield folder / CONFIG, None
    if (folder / RESULT).exists():
        result = read_result(folder, Finished)
        yield folder / RESULT, None
        yield from ((folder / name, written) for name, written in result.files.items())
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        try:
            progress = parse_progress((checkpoint / PROGRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RequestError(f"{checkpoint / PROGRESS} cannot be read ({reason(error)})") from None
        yield checkpoint / PROGRESS, None
        yield checkpoint / STATE, progress.state
