"""Selections and runs in an object store, which are made in a folder of the cache and then sent.

The last file (a selection's manifest, a run's result) marks a folder as complete, and is sent last. A reader fetches
the last file first, and so never mistakes an incomplete folder for a complete one.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dfkd.system import ranks
from dfkd.system.console import progress, say
from dfkd.system.errors import RequestError
from dfkd.system.files import hash_file, local_copy, make_folder, replacing, user_path
from dfkd.system.locks import LOCK, locked
from dfkd.system.remote import is_remote, system_of, tried

LAST = {"selection": "manifest.json", "run": "result.json"}
"""Name of the file that is written last, by kind of folder."""
MARK = "incomplete.json"
"""Name of the file that marks a folder in the store as incomplete. The file holds the hash of the folder's last file.

The file is removed after the last file was sent.
"""


@contextmanager
def sent(uri: str, kind: str) -> Iterator[None]:
    """Send the folder `local_copy(uri)` to the object store after the block, if the folder is complete.

    A complete folder in the store is fetched before the block.
    Raises: RequestError, before the block, if the store cannot be written or holds other files under this name.
    """
    remote = _Remote(uri, LAST[kind])
    ranks.from_first(remote.begin)
    try:
        yield
    except RequestError:
        ranks.from_first(remote.give_up)
        raise
    ranks.from_first(remote.send)


def folder_of(text: str) -> Path:
    """Return the folder that a text names. A folder in an object store is fetched to the cache, unless it is there.

    Raises: RequestError if the store has no complete selection or run of this name.
    """
    if not is_remote(text):
        return user_path(text)

    def fetch() -> None:
        for last in LAST.values():
            remote = _Remote(text, last)
            if remote.fetch():
                return
        raise RequestError(
            f"{text} is not a complete selection or run: it has no {' and no '.join(LAST.values())}; give the command "
            "that makes it again"
        )

    ranks.from_first(fetch)
    return local_copy(text)


@dataclass
class _Remote:
    """Folder of an object store, with the name of its last file."""

    uri: str
    last: str
    fresh: bool = False
    """Whether the store had no files of this folder before."""

    def __post_init__(self) -> None:
        self.system, path = system_of(self.uri)
        self.path, self.local = path.rstrip("/"), local_copy(self.uri)
        self.system.invalidate_cache()  # drop cached listings, which may be out of date

    def begin(self) -> None:
        if self.fetch():
            return
        mark = self.read(MARK)
        if mark is None and self._files():
            raise RequestError(f"--out {self.uri} holds something that is not complete or not of dfkd; give another")
        self.fresh = mark is None
        if self.fresh:  # shows before hours of work that the store can be written
            self._write(MARK, b"{}")

    def give_up(self) -> None:
        """Remove the mark if the store had no files before."""
        if self.fresh:
            self._remove(MARK)

    def fetch(self) -> bool:
        """Copy the store's folder to the cache, byte for byte. Returns: False if the folder is not complete."""
        whole = self.read(self.last)
        if whole is None:
            return False
        last = self.local / self.last

        def is_here() -> bool:
            return last.is_file() and last.read_bytes() == whole

        if is_here():
            return True
        with locked(self.local.parent, f"the copy of {self.uri}", wait=True):
            if is_here():  # another command has fetched it, and reads it now
                return True
            shutil.rmtree(self.local, ignore_errors=True)
            files = {name: size for name, size in self._files().items() if name not in (self.last, MARK)}
            with progress(f"fetching {self.local.name}", len(files), "files") as bar:
                for name in files:
                    self._fetch(name)
                    bar.advance(1)
            with replacing(last) as partial_name:
                partial_name.write_bytes(whole)
        return True

    def send(self) -> None:
        """Send the folder in the cache, with its last file at the end. Skip files that an earlier call has sent."""
        last = self.local / self.last
        before = self.read(self.last)
        if not last.is_file() or before == last.read_bytes():
            return
        found = (path for path in sorted(self.local.rglob("*")) if path.is_file())
        files = {path.relative_to(self.local).as_posix(): path for path in found if path.name not in (LOCK, self.last)}
        mark, there = json.dumps({"of": hash_file(last)}).encode(), dict[str, int]()
        if before is None and self.read(MARK) == mark:
            there = self._files()
        else:
            # files of another version can have the sizes of these; those of a complete one stay until they are replaced
            for name in files.keys() & self._files().keys() if before is None else ():
                self._remove(name)
            self._write(MARK, mark)
        with progress(f"sending {self.local.name}", len(files), "files") as bar:
            for name, path in files.items():
                if there.get(name) != path.stat().st_size:
                    self._send(path, name)
                bar.advance(1)
        self._write(self.last, last.read_bytes())
        self._remove(MARK)
        say(f"{self.uri}: {len(files) + 1} files were sent; a copy is in {self.local}")

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file of the folder, or None if there is no such file."""
        try:
            found: bytes | None = self._tried(name, partial(self.system.cat_file, self._at(name)), "read")
        except FileNotFoundError:
            return None
        return found

    def _files(self) -> dict[str, int]:
        """Return the sizes of the folder's files in the store by name."""
        try:
            found = self._tried("", lambda: self.system.find(self.path, detail=True), "read")
        except FileNotFoundError:
            return {}
        start = len(self.path) + 1
        return {name[start:]: int(about["size"]) for name, about in found.items() if name[start:]}

    def _fetch(self, name: str) -> None:
        path = self.local / name
        if not path.resolve().is_relative_to(self.local.resolve()):
            raise RequestError(f"{self.uri} has a file {name!r}, which is outside of it")
        make_folder(path.parent)
        with replacing(path) as partial_name:
            self._tried(name, lambda: self.system.get_file(self._at(name), str(partial_name)), "read")

    def _send(self, path: Path, name: str) -> None:
        self._tried(name, lambda: self.system.put_file(str(path), self._at(name)), "written")

    def _write(self, name: str, data: bytes) -> None:
        self._tried(name, lambda: self.system.pipe_file(self._at(name), data), "written")

    def _remove(self, name: str) -> None:
        self._tried(name, lambda: self.system.rm(self._at(name)), "written")

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _tried(self, name: str, request: Any, done: str) -> Any:
        return tried(f"{self.uri.rstrip('/')}/{name}".rstrip("/"), request, done, missing=done == "read")
