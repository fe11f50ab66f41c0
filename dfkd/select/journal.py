"""Journal of the complete shards of an unfinished selection, from which a killed `select` resumes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd.formats.manifest import MANIFEST, ShardFile, read_manifest
from dfkd.system.checksums import check_file, sealed, unsealed
from dfkd.system.errors import RequestError
from dfkd.system.files import write_text
from dfkd.system.records import parse

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class _Line:
    fingerprint: str
    file: Mapping[str, Any]


class Journal:
    """The list of the complete shards of an unfinished selection, in its folder: a line each, with a checksum.

    A line is written after its shard is on disk. The list of another selection is replaced.
    """

    def __init__(self, folder: Path, fingerprint: str, anew: Callable[[], None] = lambda: None) -> None:
        """Open the list. `anew` is called before the list of another selection, or of none, is replaced."""
        self._path, self.fingerprint = folder / JOURNAL, fingerprint
        self._is_new = True
        self.done: list[ShardFile] = []
        """Complete shards as the manifest lists them. Their checksums were just verified."""
        for file in self._listed():
            try:
                check_file(folder / file.name, file)
            except RequestError:  # missing after a power failure, or damaged: it and all later ones are written again
                break
            self.done.append(file)
        if self._is_new:
            anew()
        write_text(self._path, "".join(self._line(file) for file in ({}, *(file.describe() for file in self.done))))

    def add(self, file: Mapping[str, Any]) -> None:
        """Append a shard that was written."""
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(self._line(file))

    def remove(self) -> None:
        """Delete the list, once the manifest is written."""
        self._path.unlink()

    def _line(self, file: Mapping[str, Any]) -> str:
        return json.dumps(sealed({"fingerprint": self.fingerprint, "file": file})) + "\n"

    def _listed(self) -> Sequence[ShardFile]:
        """Return the listed shards of this selection, up to the first damaged line.

        If the selection has a manifest and no list, all its shards are returned.
        """
        if not self._path.exists():
            if not (self._path.parent / MANIFEST).exists():
                return []
            try:
                manifest = read_manifest(self._path.parent)
            except RequestError:
                return []
            self._is_new = manifest.fingerprint != self.fingerprint
            return [] if self._is_new else manifest.files
        found: list[ShardFile] = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                read = parse(_Line, unsealed(json.loads(line)))
                if read.fingerprint != self.fingerprint:
                    return []
                self._is_new = False
                found += [parse(ShardFile, read.file, "file")] if read.file else []
            except (ValueError, RecursionError):
                break
        return found
