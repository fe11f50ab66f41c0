"""Faults in a child process: a power cut or an error at the n-th file operation below a folder.

A file operation is opening a file for writing, fsync, rename, link, remove, mkdir or rmdir. An audit hook of Python
sees them; fsync is wrapped. At a power cut the process ends at once, and the disk loses what it may lose. A file loses
its bytes since the last fsync, from a random position on. A random number of the renames and removals since the last
fsync of their folder is undone, the latest first. A file system that keeps their order in a journal does the same.
"""

import errno
import os
import random
import sys
from pathlib import Path

CUT_STATUS = 77
WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Faults:
    """Counter of the operations below `root`, which causes a fault of `kind` ("cut" or "error") at number `at`."""

    def __init__(self, root, kind=None, at=-1, seed=0, ledger=None):
        self.root, self.kind, self.at, self.ledger = str(root), kind, at, ledger
        self.rng = random.Random(f"{seed}-{at}")
        self.count, self.busy = 0, False
        self.synced = {self._inode(path): path.stat().st_size for path in self._files()}
        self.names = []  # renames and removals that are not yet on the disk
        self._fsync = os.fsync
        os.fsync = self.fsync
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if self.busy or event not in WATCHED:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        self.busy = True
        try:
            paths = [self._path(argument) for argument in arguments[:2] if isinstance(argument, (str, bytes, Path))]
            if event != "os.rename" and event != "os.link":
                paths = paths[:1]
            if event in ("os.remove", "os.rmdir", "os.mkdir") and isinstance(arguments[-1], int) and arguments[-1] >= 0:
                paths = [os.path.join(os.readlink(f"/proc/self/fd/{arguments[-1]}"), str(arguments[0]))]
            if not paths or not paths[0].startswith(self.root + os.sep):
                return
            self._count(event, paths[0])
            if event in ("os.rename", "os.remove"):
                self._remember(event, paths)
        finally:
            self.busy = False

    def fsync(self, handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        if (path + os.sep).startswith(self.root + os.sep):
            self.busy = True
            try:
                self._count("fsync", path)
            finally:
                self.busy = False
        self._fsync(handle)
        if os.path.isdir(path):  # a journal writes the last rename or removal with all earlier ones
            here = [i for i, entry in enumerate(self.names) if os.path.dirname(entry[1][-1]) == path]
            del self.names[: here[-1] + 1 if here else 0]
        else:
            self.synced[self._inode(path)] = os.stat(path).st_size

    def _count(self, event, path):
        number, self.count = self.count, self.count + 1
        if self.ledger is not None:
            self.ledger.append((event, os.path.relpath(path, self.root)))
        if number != self.at:
            return
        if self.kind == "cut":
            self._lose()
            os._exit(CUT_STATUS)
        # as a kernel reports: a full disk for what stores something, a failing disk for what removes something
        code = errno.EIO if event in ("os.remove", "os.rmdir") else errno.ENOSPC
        raise OSError(code, os.strerror(code), *(() if event == "fsync" else (path,)))

    def _remember(self, event, paths):
        """Keep the file that a rename or removal takes away, so that the operation can be undone."""
        gone = paths[-1]
        backup = None
        if os.path.isfile(gone):
            backup = f"{self.root}.backup-{os.getpid()}-{self.count}"
            os.link(gone, backup)
        self.names.append((event, paths, backup))

    def _lose(self):
        for event, paths, backup in reversed(self.names[self.rng.randint(0, len(self.names)) :]):
            if event == "os.rename" and os.path.exists(paths[1]):
                os.makedirs(os.path.dirname(paths[0]), exist_ok=True)
                os.rename(paths[1], paths[0])
            if backup:
                os.makedirs(os.path.dirname(paths[-1]), exist_ok=True)
                os.replace(backup, paths[-1])
        for path in self._files():
            size, kept = path.stat().st_size, self.synced.get(self._inode(path), 0)
            if size > kept:
                os.truncate(path, self.rng.randint(kept, size))

    def _files(self):
        return [path for path in Path(self.root).rglob("*") if path.is_file() and not path.is_symlink()]

    @staticmethod
    def _path(argument):
        return os.path.abspath(os.fsdecode(argument))

    @staticmethod
    def _inode(path):
        return os.stat(path).st_ino
