"""Recorded answers of the teacher to a fixed number of views of every image, kept in the cache.

`dfkd distill --teacher-views K` trains on these K views only, and runs no teacher during the training. A view is a
random crop and flip. It is drawn from the numbers of the view and the image, not from the run's seed. Runs of any seed
and any K therefore share the recorded answers. A file holds one view of `PART_ROWS` images: the position of each crop,
and `compact` logits. FKD (A fast knowledge distillation framework for visual recognition, 2021,
https://arxiv.org/abs/2112.01528) keeps answers of random crops beside their coordinates. A fixed number of views for
every image, used in turn, is ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int16, UInt8
from torch import Tensor

from dfkd.data.images.augment import crop, draw_crops
from dfkd.data.images.jpeg import decoders
from dfkd.distill.teacher_cache.compact import ALL_UP_TO, compact, expand
from dfkd.formats.shards import Shards
from dfkd.models.classifier import Classifier
from dfkd.models.features.outputs import HALF_LIMIT
from dfkd.system import ranks
from dfkd.system.checked_parquet import Columns, Damaged, read_columns, write_columns
from dfkd.system.console import progress, say
from dfkd.system.errors import RequestError
from dfkd.system.files import request_folder
from dfkd.system.signals import Interrupted, stop_request
from dfkd.system.versions import versions

VIEW_FORMAT = 2
PART_ROWS = 4_096
"""Number of images in a file: the most that an interrupted command has to compute again."""
BATCH = 256
"""Number of images in a teacher's forward pass.

It affects the last bits of the logits, so it is independent of the training's batch size."""
_LEAST = 2.0**-24
"""Smallest number above 0 that float16 holds. Logits below it are stored as 0."""
CHECKED = 128
"""Number of recorded answers that are computed again and compared whenever a training begins."""


class TeacherViews:
    """Views of stored images with the teacher's answers; each image shows its views in turn."""

    def __init__(self, kept: Mapping[str, np.ndarray], classes: int) -> None:
        """Keep the columns [views, images, ...] in `kept`: `crops`, and those that `compact` makes of logits."""
        self.classes, self._kept = classes, kept
        self._turn = np.zeros(self.images, dtype=np.uint8 if self.views <= 255 else np.int32)

    @property
    def views(self) -> int:
        """Number of views of every image."""
        return len(self._kept["crops"])

    @property
    def images(self) -> int:
        """Number of images of all selections together."""
        return self._kept["crops"].shape[1]

    @property
    def nbytes(self) -> int:
        """Memory of the recorded answers, in bytes."""
        return sum(column.nbytes for column in self._kept.values())

    def take(self, rows: Int[Tensor, " batch"]) -> tuple[Int16[Tensor, "batch 3"], Float[Tensor, "batch classes"]]:
        """Return the next view of each image, as `augment.crop` takes it, and the teacher's logits for it.

        An image that occurs twice in a batch shows the same view twice.
        """
        where = rows.numpy()
        turn = self._turn[where].astype(np.int64)
        self._turn[where] = (turn + 1) % self.views
        return self.at(turn, where)

    def at(
        self, views: Int[np.ndarray, " batch"], rows: Int[np.ndarray, " batch"]
    ) -> tuple[Int16[Tensor, "batch 3"], Float[Tensor, "batch classes"]]:
        """Return given views of given images, with the teacher's logits."""
        columns = {name: column[views, rows] for name, column in self._kept.items()}
        return torch.from_numpy(columns["crops"]), expand(columns, self.classes)

    def classes_at(
        self, views: Int[np.ndarray, " batch"], rows: Int[np.ndarray, " batch"]
    ) -> Int[Tensor, "batch kept"]:
        """Return the classes whose own logits are kept: all, or the largest ones if there are many."""
        if "classes" in self._kept:
            return torch.from_numpy(self._kept["classes"][views, rows].astype(np.int64))
        return torch.arange(self.classes).expand(len(rows), -1)

    def state_dict(self) -> dict[str, Any]:
        """Return the next view of every image."""
        return {"turn": torch.from_numpy(self._turn.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the next view of every image."""
        self._turn = state["turn"].numpy().copy()


def recorded(teacher: Classifier, selections: Sequence[Shards], views: int, padding: int, flip: bool) -> TeacherViews:
    """Return the `views` of all images of the selections; the teacher computes answers that are not in the cache.

    Raises: RequestError if recorded answers differ from this teacher's outputs. Interrupted after SIGINT or SIGTERM.
    """
    folders = [request_folder("views", _request(teacher, shards, padding, flip)) for shards in selections]
    starts = np.cumsum([0, *map(len, selections)]).tolist()
    files = [
        _File(shards, folder, start, view, part)
        for view in range(views)
        for shards, folder, start in zip(selections, folders, starts, strict=False)
        for part in range(-(-len(shards) // PART_ROWS))
    ]
    found = TeacherViews(_columns(teacher, files, (views, starts[-1]), padding, flip), teacher.model.classes)
    largest = _largest_difference(teacher, selections, found, padding, folders)
    say(
        f"teacher views: {views} of each of {found.images:,} images, {found.nbytes / 1e6:,.0f} MB; the teacher's "
        f"logits differ from the recorded ones by at most {largest:.4f}, on {CHECKED} views that were compared"
    )
    return found


@dataclass(frozen=True)
class _File:
    """File with one view of up to `PART_ROWS` images of a selection."""

    shards: Shards
    folder: Path
    start: int
    """Index of the selection's first row among those of all selections."""
    view: int
    part: int

    @property
    def rows(self) -> Int[np.ndarray, " rows"]:
        """Rows of the images in the selection."""
        return np.arange(self.part * PART_ROWS, min((self.part + 1) * PART_ROWS, len(self.shards)))

    @property
    def path(self) -> Path:
        """File of the recorded answers."""
        return self.folder / f"view-{self.view:04d}-{self.part:06d}.parquet"


def _request(teacher: Classifier, shards: Shards, padding: int, flip: bool) -> dict[str, Any]:
    """Return everything that decides the views and the answers to them, as the key of the cache."""
    return {
        "teacher": teacher.model.fingerprint(),
        "normalize": teacher.model.normalize,
        "images": [file.sha256 for file in shards.manifest.files],
        "crop_padding": padding,
        "flip": flip,
        "compute": {
            **teacher.place.describe(),
            "batch_size": BATCH,
            "view_format": VIEW_FORMAT,
            **({"decoder": "nvjpeg"} if shards.decoder is not None else {}),
        },
        "versions": versions("torch", "torchvision", *(decoders() if shards.encoded else ())),
    }


def _columns(
    teacher: Classifier, files: Sequence[_File], shape: tuple[int, int], padding: int, flip: bool
) -> dict[str, np.ndarray]:
    """Return the files' columns in `shape` [views, images, ...]; compute files that are missing or damaged."""
    names = ("crops", "logits", *(("classes", "rest") if teacher.model.classes > ALL_UP_TO else ()))
    kept: dict[str, np.ndarray] = {}

    def keep(file: _File, columns: Columns) -> None:
        start = file.start + int(file.rows[0])
        for name, values in columns.items():
            if name not in kept:
                kept[name] = np.empty((*shape, *values.shape[1:]), dtype=values.dtype)
            kept[name][file.view, start : start + len(values)] = values

    missing = []
    for file in files:
        with suppress(Damaged):  # or missing
            columns = read_columns(file.path, names)
            if len(columns["crops"]) == len(file.rows):
                keep(file, columns)
                continue
        missing.append(file)
    if not missing:
        say("teacher views: all are cached, the teacher is not run for them")
        return kept
    total = shape[0] * shape[1]
    done = total - sum(len(file.rows) for file in missing)
    with progress("teacher's answers", total, "views", done) as bar, stop_request() as stop:
        for file in ranks.dealt(missing):
            blocks = []
            for columns in _answers(teacher, file, padding, flip):
                blocks.append(columns)
                bar.advance(len(columns["crops"]))
                if stop.signal is not None:
                    break
            made = {name: np.concatenate([block[name] for block in blocks]) for name in names}
            if len(made["crops"]) == len(file.rows):
                write_columns(file.path, made)
                keep(file, made)
            if stop.signal is not None:
                raise Interrupted(stop.signal, "the answers so far are kept; give the same command again to resume")
        ranks.meet()
        for file in missing if ranks.count() > 1 else ():
            keep(file, _of_another_rank(file, names))
    return kept


def _of_another_rank(file: _File, names: Sequence[str]) -> Columns:
    """Read a file that another process has written. Raises: RequestError if the cache is not shared with it."""
    try:
        return read_columns(file.path, names)
    except Damaged as error:
        raise RequestError(
            f"{file.path} was written by another rank and cannot be read by this one ({error}); set DFKD_CACHE to a "
            "folder that all machines share"
        ) from None


def _answers(teacher: Classifier, file: _File, padding: int, flip: bool) -> Iterator[Columns]:
    """Yield the columns of a file, one batch at a time."""
    rows = file.rows
    seed = np.random.SeedSequence([file.view, file.part]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    generator = torch.Generator().manual_seed(int(seed))
    crops = draw_crops(len(rows), padding, flip, generator, torch.device("cpu")).short()
    for start in range(0, len(rows), BATCH):
        some = slice(start, start + BATCH)
        logits = _live(teacher, file.shards.pixels(rows[some]), crops[some], padding)
        if not logits.isfinite().all():
            raise RequestError("the teacher's logits of a view of the selection are not finite; select again")
        yield {"crops": crops[some].numpy(), **compact(logits)}


def _live(
    teacher: Classifier,
    pixels: UInt8[np.ndarray, "batch height width channels"],
    crops: Int16[Tensor, "batch 3"],
    padding: int,
) -> Float[Tensor, "batch classes"]:
    """Compute the teacher's logits for these views."""
    device = teacher.place.device
    return teacher(crop(torch.from_numpy(pixels).to(device), padding, crops.to(device))).logits


def _largest_difference(
    teacher: Classifier, selections: Sequence[Shards], found: TeacherViews, padding: int, folders: Sequence[Path]
) -> float:
    """Return the largest difference between recorded logits and those computed now, over some views.

    Raises: RequestError if it is more than rounding: the files are those of another teacher.
    """
    rng = np.random.default_rng(0)
    # rounding of the precisions of computation and storage; other batches change the last bits
    rounding = max(torch.finfo(teacher.place.dtype).eps, torch.finfo(torch.float16).eps)
    differences, limits = [], []
    for shards, start in zip(selections, np.cumsum([0, *map(len, selections)]).tolist(), strict=False):
        rows = np.sort(rng.integers(0, len(shards), -(-CHECKED // len(selections))))
        views = rng.integers(0, found.views, len(rows))
        crops, kept = found.at(views, start + rows)
        now = _live(teacher, shards.pixels(rows), crops, padding).cpu().clamp(-HALF_LIMIT, HALF_LIMIT)
        where = found.classes_at(views, start + rows)  # the largest now may be other classes, because of rounding
        differences.append(float((kept - now).gather(1, where).abs().max()))
        limits.append(_LEAST + 0.05 * float(now.std()) + 4 * rounding * float(now.abs().max()))
    largest = float(np.max(differences))  # NaN if any is NaN
    if not largest <= max(limits):
        raise RequestError(
            f"recorded outputs of the teacher differ from its present outputs by {largest:.3g}; delete "
            f"{' and '.join(map(str, folders))}"
        )
    return largest
