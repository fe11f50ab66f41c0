"""Recognition of image files, by suffix or else by their first bytes, and notes on other files."""

import re
from collections import Counter
from pathlib import PurePosixPath

from dfkd.data.readers.reader import IMAGE_SUFFIXES

FIRST = 32
"""Number of first bytes of a file that are examined."""
DATA_SUFFIXES = frozenset(
    (
        *(".cls", ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html", ".id", ".index"),
        *(".caption", ".npy", ".npz", ".pt", ".pth", ".pkl", ".pickle", ".pyd", ".ten", ".mp", ".msg", ".cbor"),
    )
)
"""Suffixes of files that accompany images and are not images. These files are not opened."""
_UNFIT = frozenset(
    (
        *(".part", ".partial", ".crdownload", ".download", ".tmp", ".bak", ".orig", ".old", ".dng", ".nef", ".cr2"),
        *(".cr3", ".arw", ".rw2", ".orf", ".heic", ".avif"),
    )
)
"""Suffixes of unfinished files, copies, and formats that are not decoded. Such files may begin like images."""
_TO_CONVERT = frozenset((".avif", ".heic", ".heif", ".jp2", ".jxl"))
"""Suffixes of photographs in formats that are not decoded."""
_STARTS = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF.{4}WEBP|GIF8[79]a|BM.{4}\0\0\0\0.{4}[\x0c\x28\x38\x40\x6c\x7c]\0\0\0",
    re.DOTALL,
)
_WEAK = re.compile(rb"II\*\0|MM\0\*|P[1-6][ \t\r\n]")
"""First bytes of TIFF (also of camera makers' own formats) and PPM, which count for few suffixes only."""


def suffix_of(name: str) -> str:
    """Return the last suffix of a path, in lower case."""
    return PurePosixPath(name).suffix.lower()


def is_image(suffix: str, first: bytes) -> bool:
    """Return whether a file without an image suffix begins as an image file does."""
    return _STARTS.match(first) is not None or (suffix in ("", ".pnm", ".pbm") and _WEAK.match(first) is not None)


def may_be_image(suffix: str) -> bool:
    """Return whether the first bytes of a file without an image suffix are to be examined."""
    return not (suffix in IMAGE_SUFFIXES or suffix in DATA_SUFFIXES or suffix in _UNFIT or suffix.endswith("~"))


def counted(left_out: Counter[str]) -> dict[str, int]:
    """Return the numbers of left-out files by suffix or other reason, in sorted order."""
    return {suffix or "without suffix": left_out[suffix] for suffix in sorted(left_out)}


def count(left_out: Counter[str]) -> str:
    """Return the numbers of left-out files in words: `5 .heic, 2 without suffix`. Frequent suffixes come first."""
    ranked = sorted(counted(left_out).items(), key=lambda item: (-item[1], item[0]))
    words = [f"{number:,} {suffix}" for suffix, number in ranked[:6]]
    return ", ".join(words) + (f" and {len(ranked) - 6} suffixes more" if len(ranked) > 6 else "")


def note(where: str, left_out: Counter[str]) -> str:
    """Return a note on left-out files."""
    found = f"{left_out.total():,} files that are not taken as images: {count(left_out)}"
    return f"note: {where} holds {found}{hint(left_out)}"


def hint(left_out: Counter[str]) -> str:
    """Return what to do with photographs in formats that are not decoded, as the end of a message."""
    photographs = sorted(_TO_CONVERT & left_out.keys())
    return f"; convert {', '.join(photographs)} to JPEG" if photographs else ""
