"""Manifest of a selection: the file that is written last, with the selection's contents and all that decided them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from dfkd.config.stages.shared import Interpolation
from dfkd.data.images.filter_record import read_arrays, read_scores
from dfkd.data.images.frame import Frame
from dfkd.system.checksums import Entry, entry, sealed, unsealed
from dfkd.system.errors import RequestError, reason
from dfkd.system.files import write_json
from dfkd.system.records import Count, FileName, Holds, check_format, parse
from dfkd.system.remote_folder import LAST

FORMAT = 2
"""Version of the format of selections: manifest, shards and scores. Other versions are refused."""
MANIFEST = LAST["selection"]
BESIDE = ("dataset_info.json", "scores.parquet", "state.json")
"""Files of a selection beside the shards and the manifest."""
HINT = "; delete the folder and select again"

_AtLeastOne = Annotated[Count, Holds(lambda n: n > 0, "at least 1")]
CropShare = Annotated[float, Holds(lambda x: 0 < x <= 1, "above 0 and at most 1")]
_Threshold = Annotated[float, Holds(lambda x: abs(x) < 2**40, "a confidence")]


@dataclass(frozen=True)
class ImageShape:
    """Form of a selection's images: raw pixels or encoded files, side in pixels, and channels."""

    encoded: bool
    size: _AtLeastOne
    channels: Annotated[int, Holds(lambda n: n in (1, 3), "1 or 3")]
    bits: Annotated[int, Holds(lambda n: 8 <= n <= 16, "from 8 to 16")] | None = None
    """Number of bits in use of encoded 16-bit images."""


@dataclass(frozen=True)
class StoredFile(Entry):
    """File of a selection with its size, hash and name."""

    name: FileName


@dataclass(frozen=True)
class ShardFile(StoredFile):
    """Shard of a selection, with its number of rows."""

    rows: Count

    def describe(self) -> dict[str, Any]:
        """Return the shard's table in the manifest."""
        return {"name": self.name, "rows": self.rows, "bytes": self.bytes, "sha256": self.sha256}


@dataclass(frozen=True)
class Unreadable:
    """Pool image that could not be read, and the reason."""

    source: str
    why: str


@dataclass(frozen=True)
class NetworkPrint:
    """Identity of a network: everything that decides its outputs."""

    architecture: str
    weights: str
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of images for the teacher."""

    normalize: str
    crop_pct: CropShare = 1.0
    interpolation: Interpolation = "bilinear"

    @property
    def frame(self) -> Frame:
        """Part of a photograph that the teacher saw."""
        return Frame(self.crop_pct, self.interpolation)


@dataclass(frozen=True)
class SelectionOptions:
    """Options that decided which images were selected."""

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
    """Manifest of a complete selection.

    `config` in `table` is the request. `source` is the name of the generator, or `selection`.
    """

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
    """Cost of generated images: the teacher's forward passes and the generator's steps."""
    filter: Mapping[str, Any] = field(default_factory=dict)
    """Pool filter that was fitted: the Inception Scores, and the filter itself if it was kept. Empty without one."""
    class_names: tuple[str, ...] = ()
    """Names of the teacher's classes, by number. Empty if they are not known."""
    left_out: Mapping[str, Mapping[str, Count]] = field(default_factory=dict)
    """Number of files that are not images, by part of the pool and file suffix."""


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, the last file of a selection."""
    beside = [{"name": name, **entry(folder / name)} for name in BESIDE if (folder / name).exists()]
    write_json(folder / MANIFEST, sealed({"format": FORMAT, **manifest, "beside": beside}))


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a complete selection. Raises: RequestError if there is none that this version reads."""
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
            read_arrays(manifest.filter, manifest.image.channels)
    except OSError as error:  # missing permission or an unreachable server are no reason to delete anything
        raise RequestError(f"{path} cannot be read: {reason(error)}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"filter has no {error}" if isinstance(error, KeyError) else str(error)
        raise RequestError(f"{path} cannot be read ({what}){HINT}") from None
    return manifest
