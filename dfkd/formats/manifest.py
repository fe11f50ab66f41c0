"""A selection's manifest, its last file: what makes it complete, what it holds, and everything that decided it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from dfkd.data.images.filter import read_filter, read_scores
from dfkd.data.images.frame import Frame, Interpolation
from dfkd.system.checksums import Entry, entry, sealed, unsealed
from dfkd.system.errors import RequestError
from dfkd.system.files import write_json
from dfkd.system.records import Count, FileName, Holds, check_format, parse

FORMAT = 2
"""Of a selection: its manifest, shards and scores. Another one is refused."""
MANIFEST = "manifest.json"
HINT = "; delete the folder and select again"

_AtLeastOne = Annotated[Count, Holds(lambda n: n > 0, "at least 1")]
CropShare = Annotated[float, Holds(lambda x: 0 < x <= 1, "above 0 and at most 1")]
_Threshold = Annotated[float, Holds(lambda x: abs(x) < 2**40, "a confidence")]


@dataclass(frozen=True)
class ImageShape:
    """What the images of a selection are: raw or encoded files, pixels a side, channels."""

    encoded: bool
    size: _AtLeastOne
    channels: Annotated[int, Holds(lambda n: n in (1, 3), "1 or 3")]
    bits: Annotated[int, Holds(lambda n: 8 <= n <= 16, "from 8 to 16")] | None = None
    """Of encoded images with 16 bits, those in use."""


@dataclass(frozen=True)
class StoredFile(Entry):
    """A file of the folder."""

    name: FileName


@dataclass(frozen=True)
class ShardFile(StoredFile):
    """A shard."""

    rows: Count

    def describe(self) -> dict[str, Any]:
        """The shard's table in the manifest."""
        return {"name": self.name, "rows": self.rows, "bytes": self.bytes, "sha256": self.sha256}


@dataclass(frozen=True)
class Unreadable:
    """An image of the pool that could not be read."""

    source: str
    why: str


@dataclass(frozen=True)
class NetworkPrint:
    """What decides a network's outputs."""

    architecture: str
    weights: str
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Preprocess:
    """How the images went into the teacher."""

    normalize: str
    crop_pct: CropShare = 1.0
    interpolation: Interpolation = "bilinear"

    @property
    def frame(self) -> Frame:
        """What of a photograph the teacher saw."""
        return Frame(self.crop_pct, self.interpolation)


@dataclass(frozen=True)
class SelectionOptions:
    """The options that decided which images there are."""

    method: str
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Content:
    """Everything that decided a selection."""

    teacher: NetworkPrint
    preprocess: Preprocess
    options: SelectionOptions
    seed: int
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What a complete selection is. `config` is the request, `source` the generator that made it or `selection`."""

    fingerprint: str
    teacher: str
    source: str
    count: Count
    image: ImageShape
    classes: _AtLeastOne
    per_class: tuple[Count, ...]
    threshold: _Threshold | None
    admitted: Count
    reasons: Mapping[str, Count]
    unreadable: tuple[Unreadable, ...]
    content: Content
    files: tuple[ShardFile, ...]
    beside: tuple[StoredFile, ...]
    table: Mapping[str, Any]
    cost: Mapping[str, Count] = field(default_factory=dict)
    """Of images that a generator made: the teacher's forward passes and the generator's steps."""
    filter: Mapping[str, Any] = field(default_factory=dict)
    """Where one was found: the teacher's scores, and the filter itself where it was kept."""
    left_out: Mapping[str, Mapping[str, Count]] = field(default_factory=dict)
    """By part of the pool and suffix, how many files are no images."""


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, the last file of a selection."""
    beside = [
        {"name": name, **entry(folder / name)}
        for name in ("dataset_info.json", "scores.parquet", "state.json")
        if (folder / name).exists()
    ]
    write_json(folder / MANIFEST, sealed({"format": FORMAT, **manifest, "beside": beside}))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a complete selection. Raises: RequestError where there is none that this version reads."""
    path = folder / MANIFEST
    if not path.exists():
        what = "does not exist" if not folder.exists() else f"is not a selection: it has no {MANIFEST}"
        raise RequestError(f"{folder} {what}; dfkd select makes one")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        check_format(table, FORMAT)
        manifest = parse(Manifest, unsealed(table))
        if len(manifest.per_class) != manifest.classes:
            raise ValueError(f"per_class counts {len(manifest.per_class)} classes of {manifest.classes}")
        if manifest.filter:
            read_scores(manifest.filter)
            read_filter(manifest.filter, manifest.image.channels)
    except OSError as error:  # a permission, a server that is away: no reason to delete anything
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"filter has no {error}" if isinstance(error, KeyError) else str(error)
        raise RequestError(f"{path} cannot be read ({what}){HINT}") from None
    return manifest
