"""Which files are images: by a suffix that images have, else by their first bytes; and what is said of the others."""

import re
from collections import Counter
from pathlib import PurePosixPath

from dfkd.data.readers.reader import IMAGE_SUFFIXES

FIRST = 32
"""Bytes that show what a file holds."""
DATA_SUFFIXES = frozenset(
    (
        *(".cls", ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html", ".id", ".index"),
        *(".caption", ".npy", ".npz", ".pt", ".pth", ".pkl", ".pickle", ".pyd", ".ten", ".mp", ".msg", ".cbor"),
    )
)
"""Of files that lie beside images and hold something else: their content is not looked at."""
_UNFIT = frozenset(
    (
        *(".part", ".partial", ".crdownload", ".download", ".tmp", ".bak", ".orig", ".old", ".dng", ".nef", ".cr2"),
        *(".cr3", ".arw", ".rw2", ".orf", ".heic", ".avif"),
    )
)
"""Of unfinished files, copies, and formats that are not decoded: they may begin as images do."""
_STARTS = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF.{4}WEBP|GIF8[79]a|BM.{4}\0\0\0\0.{4}[\x0c\x28\x38\x40\x6c\x7c]\0\0\0",
    re.DOTALL,
)
_WEAK = re.compile(rb"II\*\0|MM\0\*|P[1-6][ \t\r\n]")
"""TIFF, in which camera makers keep their own formats too, and PPM; believed where no suffix says otherwise."""


def suffix_of(name: str) -> str:
    """The last suffix of a path, in lower case."""
    return PurePosixPath(name).suffix.lower()


def is_image(suffix: str, first: bytes) -> bool:
    """Whether a file of another suffix than images have begins as an image does."""
    return _STARTS.match(first) is not None or (suffix in ("", ".pnm", ".pbm") and _WEAK.match(first) is not None)


def may_be_image(suffix: str) -> bool:
    """Whether a file's first bytes are worth a look, where its suffix is none that images have."""
    return not (suffix in IMAGE_SUFFIXES or suffix in DATA_SUFFIXES or suffix in _UNFIT or suffix.endswith("~"))


def counted(left_out: Counter[str]) -> dict[str, int]:
    """Numbers of files by suffix, or by another reason to leave them out, in sorted order."""
    return {suffix or "without suffix": left_out[suffix] for suffix in sorted(left_out)}


def count(left_out: Counter[str]) -> str:
    """`5 .heic, 2 without suffix`: the commonest suffixes first."""
    ranked = sorted(counted(left_out).items(), key=lambda item: (-item[1], item[0]))
    words = [f"{number:,} {suffix}" for suffix, number in ranked[:6]]
    return ", ".join(words) + (f" and {len(ranked) - 6} suffixes more" if len(ranked) > 6 else "")


def note(where: str, left_out: Counter[str]) -> str:
    """What to say of files that are left out."""
    return f"note: {where} holds {left_out.total():,} files that are not taken as images: {count(left_out)}"
