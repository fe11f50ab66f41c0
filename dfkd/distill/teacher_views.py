"""The teacher's answers once: to a fixed number of views of every image, kept in the cache before the training begins.

`dfkd distill --teacher-views K` trains on these K views alone and runs no teacher. A view is a random crop and flip;
which one is drawn from the number of the view and of the image, not from the run's seed, so that runs of any seed and
of any K share what is kept. A file holds one view of `PART_ROWS` images: where each was cropped, and `compact` logits.
FKD (A fast knowledge distillation framework for visual recognition, 2021, https://arxiv.org/abs/2112.01528) keeps
such answers of random crops beside their coordinates; a fixed number for every image, in turns, is ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int16, UInt8
from torch import Tensor

from dfkd.columns import Columns, Damaged, read_columns, write_columns
from dfkd.console import progress, say
from dfkd.distill.augment import crop, draw_crops
from dfkd.distill.compact import ALL_UP_TO, LARGEST, compact, expand
from dfkd.errors import RequestError
from dfkd.files import request_folder
from dfkd.shards import Shards
from dfkd.signals import Interrupted, stop_request
from dfkd.teacher import Classifier
from dfkd.versions import versions

VIEW_FORMAT = 1
PART_ROWS = 4_096
"""Images a file: what an interrupted command has to do again at the most."""
BATCH = 256
"""Images a teacher forward; it decides the last bits, so it is not the training's."""
CHECKED = 128
"""Answers that are given again and compared whenever a training begins."""


class TeacherViews:
    """Views of stored images with the teacher's answers; each image shows its views in turn."""

    def __init__(self, kept: Sequence[Mapping[str, np.ndarray]], classes: int, padding: int) -> None:
        """`kept` are the columns of every view, each of all images."""
        self.classes, self.padding = classes, padding
        self._kept = {name: np.stack([view[name] for view in kept]) for name in kept[0]}
        self._turn = np.zeros(self.images, dtype=np.min_scalar_type(len(kept)))

    @property
    def views(self) -> int:
        """Views of every image."""
        return len(self._kept["crops"])

    @property
    def images(self) -> int:
        """Images, of all selections together."""
        return self._kept["crops"].shape[1]

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return sum(column.nbytes for column in self._kept.values())

    def take(self, rows: Int[Tensor, " batch"]) -> tuple[Int16[Tensor, "batch 3"], Float[Tensor, "batch classes"]]:
        """The next view of each image, as `augment.crop` takes it, and the teacher's logits of it.

        An image that stands twice in a batch shows the same view twice.
        """
        where = rows.numpy()
        turn = self._turn[where].astype(np.int64)
        self._turn[where] = (turn + 1) % self.views
        return self.at(turn, where)

    def at(
        self, views: Int[np.ndarray, " batch"], rows: Int[np.ndarray, " batch"]
    ) -> tuple[Int16[Tensor, "batch 3"], Float[Tensor, "batch classes"]]:
        """Certain views of certain images."""
        columns = {name: column[views, rows] for name, column in self._kept.items()}
        return torch.from_numpy(columns["crops"]), expand(columns, self.classes)

    def state_dict(self) -> dict[str, Any]:
        """Whose turn it is, for every image."""
        return {"turn": torch.from_numpy(self._turn.astype(np.int32))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._turn = state["turn"].numpy().astype(self._turn.dtype)


def recorded(teacher: Classifier, selections: Sequence[Shards], views: int, padding: int, flip: bool) -> TeacherViews:
    """The `views` of all images of the selections; the teacher answers what is not in the cache yet.

    Raises: RequestError where what is kept is not what this teacher says. Interrupted after SIGINT or SIGTERM.
    """
    folders = [request_folder("views", _request(teacher, shards, padding, flip)) for shards in selections]
    files = [
        _File(shards, folder, view, part)
        for view in range(views)
        for shards, folder in zip(selections, folders, strict=True)
        for part in range(-(-len(shards) // PART_ROWS))
    ]
    columns = _columns(teacher, files, padding, flip)
    kept = [
        _joined([one for file, one in zip(files, columns, strict=True) if file.view == view]) for view in range(views)
    ]
    found = TeacherViews(kept, teacher.model.classes, padding)
    largest = _largest_difference(teacher, selections, found, folders)
    say(
        f"teacher views: {views} of each of {found.images:,} images, {found.nbytes / 1e6:,.0f} MB; the teacher's "
        f"logits differ from those that are kept by {largest:.4f} at the most, in {CHECKED} that were compared"
    )
    return found


@dataclass(frozen=True)
class _File:
    """One view of some images of a selection."""

    shards: Shards
    folder: Path
    view: int
    part: int

    @property
    def rows(self) -> Int[np.ndarray, " rows"]:
        """The images, by their rows in the selection."""
        return np.arange(self.part * PART_ROWS, min((self.part + 1) * PART_ROWS, len(self.shards)))

    @property
    def path(self) -> Path:
        return self.folder / f"view-{self.view:04d}-{self.part:06d}.parquet"


def _request(teacher: Classifier, shards: Shards, padding: int, flip: bool) -> dict[str, Any]:
    """Everything that decides the views and the answers to them; the cache's key."""
    return {
        "teacher": teacher.model.fingerprint(),
        "normalize": teacher.model.normalize,
        "selection": shards.manifest["fingerprint"],
        "crop_padding": padding,
        "flip": flip,
        "compute": {**teacher.place.describe(), "batch_size": BATCH, "view_format": VIEW_FORMAT},
        "versions": versions("torch", "torchvision"),
    }


def _columns(teacher: Classifier, files: Sequence[_File], padding: int, flip: bool) -> list[Columns]:
    """What the files hold; those that are not there, or damaged, are made."""
    names = ("crops", "logits", *(("classes", "rest") if teacher.model.classes > ALL_UP_TO else ()))
    found: list[Columns | None] = []
    for file in files:
        try:
            found.append(read_columns(file.path, names))
        except Damaged:  # or not there
            found.append(None)
    if None not in found:
        say("teacher views: all are cached, the teacher is not run")
    total = sum(len(file.rows) for file in files)
    done = sum(len(columns["crops"]) for columns in found if columns is not None)
    with progress("teacher's answers", total, "views", done) as bar, stop_request() as stop:
        for number, file in enumerate(files):
            if found[number] is None:
                blocks = []
                for columns in _answers(teacher, file, padding, flip):
                    blocks.append(columns)
                    bar.advance(len(columns["crops"]))
                    if stop.signal is not None:
                        raise Interrupted(
                            stop.signal, "the answers so far are kept, the same command goes on from there"
                        )
                made = _joined(blocks)
                write_columns(file.path, made)
                found[number] = made
    return [columns for columns in found if columns is not None]


def _answers(teacher: Classifier, file: _File, padding: int, flip: bool) -> Iterator[Columns]:
    """The columns of a file, a batch at a time."""
    rows = file.rows
    seed = np.random.SeedSequence([file.view, file.part]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    generator = torch.Generator().manual_seed(int(seed))
    crops = draw_crops(len(rows), padding, flip, generator, torch.device("cpu")).short()
    for start in range(0, len(rows), BATCH):
        some = slice(start, start + BATCH)
        logits = _live(teacher, file.shards.pixels(rows[some]), crops[some], padding)
        if not logits.isfinite().all():
            raise RequestError("the teacher's logits of a view of --samples are not finite; select again")
        yield {"crops": crops[some].numpy(), **compact(logits)}


def _joined(blocks: Sequence[Columns]) -> Columns:
    """Columns one behind the other."""
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _live(
    teacher: Classifier,
    pixels: UInt8[np.ndarray, "batch height width channels"],
    crops: Int16[Tensor, "batch 3"],
    padding: int,
) -> Float[Tensor, "batch classes"]:
    """What the teacher says of these views now."""
    place = teacher.place.device
    return teacher(crop(torch.from_numpy(pixels).to(place), padding, crops.to(place))).logits


def _largest_difference(
    teacher: Classifier, selections: Sequence[Shards], found: TeacherViews, folders: Sequence[Path]
) -> float:
    """Between logits that are kept and those given now, over some views.

    Raises: RequestError where it is more than rounding: the files are those of another teacher.
    """
    rng = np.random.default_rng(0)
    starts = np.cumsum([0, *map(len, selections)])
    largest, limit = 0.0, 0.0
    for shards, start in zip(selections, starts, strict=False):
        rows = np.sort(rng.integers(0, len(shards), -(-CHECKED // len(selections))))
        crops, kept = found.at(rng.integers(0, found.views, len(rows)), start + rows)
        now = _live(teacher, shards.pixels(rows), crops, found.padding).cpu().clamp(-65504, 65504)
        where = now.topk(found.classes if found.classes <= ALL_UP_TO else LARGEST, dim=1).indices  # not the rest
        largest = max(largest, float((kept - now).gather(1, where).abs().max()))
        limit = max(limit, 0.05 * float(now.std()))
    if not largest <= limit:
        raise RequestError(
            f"what is kept of the teacher's answers differs from what it says now by {largest:.3g}; delete "
            f"{' and '.join(map(str, folders))}"
        )
    return largest
