"""Reader of a folder of images. For labels, first-level subfolders are the classes."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dfkd.data.labels import labels_of_names
from dfkd.data.readers import content
from dfkd.data.readers.reader import IMAGE_SUFFIXES, Names, NoImages, Reader, Unreadable, printable
from dfkd.system.console import say
from dfkd.system.errors import RequestError

_SYSTEM = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that operating systems and archivers add, with thumbnails or copies."""
_SPLIT = re.compile(r"(train(ing)?|val(id(ation)?)?|test(ing)?|dev|eval(uation)?)([-_ ]?(set|data|images|\d+))?")
"""Names of folders that hold a split of a data set, rather than a class."""


class FolderReader(Reader):
    """Reader of every image file below a folder, in sorted order.

    Links to folders are followed. Hidden files and system folders are left out. A file is an image by its suffix, or
    else by its first bytes.
    """

    classes_by_name = True

    def __init__(self, path: Path) -> None:
        self._path, self._names = path, Names()
        digest, left_out = hashlib.sha256(), Counter[str]()
        for entry, relative in _image_files(str(path), left_out):
            name = os.fsencode(relative)
            try:
                status = entry.stat()
            except OSError:  # a broken link stays in the list, and reading reports it
                status = entry.stat(follow_symlinks=False)
            digest.update(b"%s\0%d\0%d\n" % (name, status.st_size, status.st_mtime_ns))
            self._names.append(name)
        self.identity = {"format": "folder", "files": digest.hexdigest()[:16]}
        if not len(self):
            raise NoImages(f"folder {str(path)!r} holds no images{_hint(path, left_out)}")
        self.left_out = content.counted(left_out)
        if left_out:
            say(content.note(f"folder {str(path)!r}", left_out))

    def __len__(self) -> int:
        return len(self._names)

    def read(self, indices: Int64[np.ndarray, " n"]) -> list[object]:
        """Return each file's bytes."""
        return [self._file(i) for i in indices.tolist()]

    def members(self, indices: Int64[np.ndarray, " n"]) -> list[str]:
        """Return `/sub/a.png` for each file."""
        return [f"/{printable(self._names[i])}" for i in indices.tolist()]

    def named_labels(self) -> tuple[list[str], Int64[np.ndarray, " images"]]:
        """Return the sorted names of the first-level subfolders, and each image's position in these names.

        Raises: RequestError if an image is in no subfolder.
        """
        with os.scandir(self._path) as entries:
            classes = sorted(os.fsencode(e.name) for e in entries if e.is_dir() and not _hidden(e.name))
        number = {name: i for i, name in enumerate(classes)}
        positions = np.empty(len(self), np.int64)
        for i in range(len(self)):
            first, slash, _ = self._names[i].partition(os.fsencode(os.sep))
            if not slash:
                raise RequestError(
                    f"folder {str(self._path)!r} has no labels: {printable(first)!r} lies in no class subfolder"
                )
            positions[i] = number[first]
        names = [printable(name) for name in classes]
        seen = [names[i] for i in np.unique(positions)]
        splits = [name for name in seen if _SPLIT.fullmatch(name.lower())]
        if len(splits) > 1 or len(splits) == len(seen):
            say(
                f"note: folder {str(self._path)!r} holds {', '.join(splits)}, which look like splits and are taken as "
                f"classes; for one split give '{self._path / splits[0]}'"
            )
        return names, positions

    def labels(self) -> Int64[np.ndarray, " images"]:
        """Return each image's class, for a model with one class per subfolder.

        Raises: RequestError as `named_labels`.
        """
        return labels_of_names(*self.named_labels(), f"folder {str(self._path)!r}")

    def _file(self, index: int) -> bytes | Unreadable:
        try:
            return (self._path / os.fsdecode(self._names[index])).read_bytes()
        except OSError as error:
            return Unreadable(f"cannot be opened: {error.strerror}")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM


def _image_files(
    folder: str, left_out: Counter[str], below: str = "", above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple["os.DirEntry[str]", str]]:
    """Yield each image file's entry and its path below the top folder, in sorted order. Count the other files."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link back to a parent folder
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
    except PermissionError as error:
        raise RequestError(
            f"folder {folder!r} cannot be read: this user has no permission; grant it, or leave the folder out"
        ) from error
    for entry in entries:
        if _hidden(entry.name):
            continue
        if _leads_to(entry.is_dir):
            yield from _image_files(entry.path, left_out, f"{below}{entry.name}{os.sep}", above | {here})
        elif _is_image(entry):
            yield entry, below + entry.name
        else:
            left_out[content.suffix_of(entry.name)] += 1


def _is_image(entry: "os.DirEntry[str]") -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    # a pipe is not opened, because that would block
    if suffix in IMAGE_SUFFIXES or not (content.may_be_image(suffix) and _leads_to(entry.is_file)):
        return suffix in IMAGE_SUFFIXES
    try:
        with open(entry.path, "rb", buffering=0) as file:
            return content.is_image(suffix, file.read(content.FIRST))
    except OSError:
        return False


def _leads_to(kind: Callable[[], bool]) -> bool:
    """Return whether an entry is of a kind: False for a link that leads to itself, or where nothing may be read."""
    try:
        return kind()
    except OSError:
        return False


def _hint(path: Path, left_out: Counter[str]) -> str:
    """Return the end of the error message: what to write instead, or what the folder holds."""
    for suffix in (".tar", ".parquet", ".arrow", ".npz"):
        if any(path.glob(f"*{suffix}")):
            return f"; for its {suffix} files write '{path}/*{suffix}'"
    others = f", but {content.count(left_out)}{content.hint(left_out)}" if left_out else ""
    return f" ({' '.join(sorted(IMAGE_SUFFIXES))}){others}"
