"""Scoring of a pool: the teacher sees every image once. The scores are cached, part by part, for later selections."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dfkd.data import Images, Pool
from dfkd.models.classifier import Classifier
from dfkd.models.features.image_distance import ImageDistances
from dfkd.models.features.outputs import HALF_LIMIT, half
from dfkd.select.near_copies import describe
from dfkd.select.stored_scores import SCORES, STORED, PoolScores, features_file, parts_of, range_of, scores_file
from dfkd.system.checked_parquet import Columns, Damaged, read_columns, write_columns
from dfkd.system.console import progress, say
from dfkd.system.errors import RequestError
from dfkd.system.signals import Interrupted, StopRequest, stop_request

SCORE_FORMAT = 4
UNREADABLE_NAMED = 3
"""Images that cannot be read and are named on the terminal."""


def score_logits(
    logits: Float[Tensor, "batch classes"],
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Return confidence max p, entropy -sum p log p / log(classes), and the predicted class.

    Confidence and entropy are NaN if a logit is not finite. They are computed in float32 from log-probabilities, so
    that a probability that underflows to 0 adds 0 and not NaN.
    """
    finite = logits.isfinite().all(dim=1)
    log_p = torch.log_softmax(torch.where(finite[:, None], logits.float(), 0.0), dim=1)
    p = log_p.exp()
    # one class has no uncertainty: its entropy is 0, not 0 / log(1)
    norm = float(np.log(max(logits.shape[1], 2)))
    entropy = torch.where(finite, -(p * log_p).sum(dim=1) / norm, torch.nan).clamp(0, 1)
    confidence, prediction = p.max(dim=1)
    return torch.where(finite, confidence, torch.nan), entropy, prediction


Scorer = Callable[[Sequence[int], Callable[[int], None]], Generator[dict[int, str], None, None]]
"""Function that scores parts into the pool's folder, and calls its second argument with numbers of images.

For each part that is done, it yields why images could not be read, by pool index.
"""


def score_pool(
    pool: Pool, folder: Path, scorer: Scorer, *, tap: str | None, max_unreadable: float, parts: range | None = None
) -> PoolScores:
    """Score the images of some parts (None: all) for which `folder` has no scores, and open the scores.

    With `tap`, the teacher's tap `last`, features are stored too. Memory does not grow with the pool's pixels. Images
    outside of the parts are not opened.
    Raises: RequestError if more than `max_unreadable` of the pool cannot be read, and what the scorer raises.
    """
    parts = range(parts_of(len(pool))) if parts is None else parts
    images = sum(len(range_of(len(pool), part)) for part in parts)
    problems: dict[int, str] = {}

    def first() -> Iterator[tuple[str, str]]:
        rows = sorted(problems)[:UNREADABLE_NAMED]
        return zip(pool.origins(np.array(rows)), map(problems.__getitem__, rows), strict=True)

    def check() -> None:
        check_unreadable(len(problems), len(pool), max_unreadable, first)

    todo, damaged = _cached(folder, parts, tap, len(pool), problems)
    if damaged:
        say(f"scores: {damaged} of {len(parts)} cached parts are damaged and scored again")
    check()
    if not parts:
        say(f"scores: no images are in this part, because the pool has only {parts_of(len(pool)):,} pieces")
    elif not todo:
        say(f"scores: all {images:,} are cached, the teacher is not run")
    else:
        done = images - sum(len(range_of(len(pool), part)) for part in todo)
        with progress("scoring", images, "images", done) as bar, closing(scorer(todo, bar.advance)) as scored:
            for found in scored:
                problems |= found
                check()
    return PoolScores(folder, tap, len(pool), dict(sorted(problems.items())))


@dataclass(frozen=True)
class PartScorer:
    """A scorer of one part after the other, in this process."""

    teacher: Classifier
    pool: Pool
    folder: Path
    batch_size: int
    tap: str | None

    def __call__(self, todo: Sequence[int], advance: Callable[[int], None]) -> Generator[dict[int, str], None, None]:
        """Score the parts `todo`, and yield for each why images could not be read.

        Raises: Interrupted after SIGINT or SIGTERM, once the existing scores of an unfinished part are written.
        """
        with stop_request() as stop:
            for part in todo:
                columns = self._columns(part, advance, stop)
                whole = len(columns["confidence"]) == len(range_of(len(self.pool), part))
                self._write(part, columns, head=not whole)
                if stop.signal is not None:
                    raise Interrupted(stop.signal, "the scores so far are kept; give the same command again to resume")
                yield _problems(len(self.pool), part, columns)

    def _columns(self, part: int, advance: Callable[[int], None], stop: StopRequest) -> Columns:
        """Return the columns of a part. After a signal there are fewer rows."""
        images, scored = range_of(len(self.pool), part), 0
        part_columns: Columns = {}
        distances = ImageDistances(self.teacher.network)

        def keep(columns: Columns) -> None:
            nonlocal scored
            end = scored + len(columns["confidence"])
            for name, values in columns.items():
                if name not in part_columns:  # once per part: small blocks, one per batch, would fragment the heap
                    part_columns[name] = np.empty((len(images), *values.shape[1:]), values.dtype)
                part_columns[name][scored:end] = values
            advance(end - scored)
            scored = end

        if head := self._head(part):
            keep(head)
        for indices, batch in self.pool.batches(self.batch_size, images.start + scored, images.stop):
            problems = np.array([batch.problems.get(i) for i in range(len(indices))], dtype=object)
            keep({**_score_batch(self.teacher, distances, batch), "problem": problems})
            if stop.signal is not None:
                break
        return {name: values[:scored] for name, values in part_columns.items()}

    def _head(self, part: int) -> Columns:
        """Return what an interrupted command left of a part; empty if that is not whole batches.

        With whole batches, the later batches have the same images as without an interruption.
        """
        try:
            head = read_columns(scores_file(self.folder, part, True), STORED)
            if self.tap:
                head |= read_columns(features_file(self.folder, part, self.tap, True), ("features",))
        except Damaged:  # or missing
            return {}
        rows = {len(values) for values in head.values()}
        return head if len(rows) == 1 and rows.pop() % self.batch_size == 0 else {}

    def _write(self, part: int, columns: Columns, head: bool) -> None:
        """Write a part's scores, or the first of them if `head`.

        Features are written first, because a part is complete once it has both.
        """
        if self.tap:
            write_columns(features_file(self.folder, part, self.tap, head), {"features": columns["features"]})
        # in one order, also if the first batches were read from a file
        write_columns(scores_file(self.folder, part, head), {name: columns[name] for name in STORED})
        if not head:
            scores_file(self.folder, part, True).unlink(missing_ok=True)
            if self.tap:
                features_file(self.folder, part, self.tap, True).unlink(missing_ok=True)


def _score_batch(teacher: Classifier, distances: ImageDistances, images: Images) -> dict[str, np.ndarray]:
    with distances.watched():
        outputs = teacher(torch.from_numpy(images.pixels))
    confidence, entropy, prediction = score_logits(outputs.logits)
    columns = {
        "confidence": confidence,
        "entropy": entropy,
        "prediction": prediction.int(),
        "distance": distances.take(len(prediction)),
        "logits": half(outputs.logits),
        "cells": torch.from_numpy(describe(images.pixels)).half(),
    }
    if "last" in outputs.features:
        columns["features"] = _directions(outputs.features["last"].flatten(1))
    return {name: values.cpu().numpy() for name, values in columns.items()}


def _problems(images: int, part: int, columns: Columns) -> dict[int, str]:
    """Return why images of a part could not be read, by pool index."""
    indices = range_of(images, part)
    return {indices[i]: why for i, why in enumerate(columns["problem"]) if why is not None}


def _directions(features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    """Convert features to float16, of which only the directions are used.

    A row out of range is scaled. A row that is not finite becomes 0.
    """
    features = features.float()  # bfloat16 rounds the limit itself up, beyond the range of float16
    features = torch.where(features.isfinite().all(dim=1, keepdim=True), features, 0.0)
    return (features / (features.abs().amax(dim=1, keepdim=True) / HALF_LIMIT).clamp(min=1)).half()


def _cached(
    folder: Path, parts: range, tap: str | None, images: int, problems: dict[int, str]
) -> tuple[list[int], int]:
    """Return the parts to score, and how many of them are damaged. `problems` gets those of the other parts."""
    todo, damaged = [], 0
    for part in parts:
        if not scores_file(folder, part).exists() or (tap and not features_file(folder, part, tap).exists()):
            todo.append(part)
            continue
        try:
            columns = read_columns(scores_file(folder, part), (*SCORES, "problem"))
            if len(columns["confidence"]) != len(range_of(images, part)):
                raise Damaged(f"{scores_file(folder, part)} has other rows")
        except Damaged:
            todo.append(part)
            damaged += 1
            continue
        problems |= _problems(images, part, columns)
    return todo, damaged


def check_unreadable(problems: int, images: int, share: float, first: Callable[[], Iterable[tuple[str, str]]]) -> None:
    """Raise RequestError if more than a share of the images cannot be read.

    `first` returns the origins of some of them, and why each cannot be read.
    """
    if problems / images > share:  # divided: 0.29 * 100 is a little below 29
        named = "; ".join(f"{source} ({why})" for source, why in first())
        raise RequestError(
            f"{problems} of {images} images cannot be read, above --max-unreadable {share:g}: "
            f"{named}; remove them or raise the limit"
        )
