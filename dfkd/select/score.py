"""Pool -> scores: the teacher sees every image once; what it says is kept, part by part, for every later selection."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dfkd.data import Images, Pool
from dfkd.models.classifier import Classifier
from dfkd.models.features.image_distance import ImageDistances
from dfkd.models.features.outputs import half
from dfkd.models.features.taps import Tap
from dfkd.select.methods import ImageScores
from dfkd.system.checked_parquet import Columns, Damaged, read_columns, write_columns
from dfkd.system.console import progress, say
from dfkd.system.errors import RequestError
from dfkd.system.files import hash_of
from dfkd.system.signals import Interrupted, StopRequest, stop_request

SCORE_FORMAT = 3
PART_ROWS = 16_384
"""Images a part: a killed scoring goes on from its last complete part, an interrupted one from its last batch."""
SCORES = {"confidence": np.float32, "entropy": np.float32, "prediction": np.int32, "distance": np.float32}
"""The columns that are held for the whole pool, in the order of `ImageScores`: 16 bytes an image."""


def score_logits(
    logits: Float[Tensor, "batch classes"],
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Confidence max p, entropy -sum p log p / log(classes), and the predicted class; NaN where a logit is not finite.

    Computed in float32 from log-probabilities, so that a probability that underflows to 0 adds 0 and not NaN.
    """
    finite = logits.isfinite().all(dim=1)
    log_p = torch.log_softmax(torch.where(finite[:, None], logits.float(), 0.0), dim=1)
    p = log_p.exp()
    # one class has no uncertainty: its entropy is 0, not 0 / log(1)
    norm = float(np.log(max(logits.shape[1], 2)))
    entropy = torch.where(finite, -(p * log_p).sum(dim=1) / norm, torch.nan).clamp(0, 1)
    confidence, prediction = p.max(dim=1)
    return torch.where(finite, confidence, torch.nan), entropy, prediction


@dataclass(frozen=True)
class Share:
    """The `number`-th of `count` equal shares of a pool's parts: one command's work, of several at once."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Share":
        """From K/N. Raises: RequestError for anything else."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        share = cls(*map(int, match.groups())) if match else cls(0)
        if not 1 <= share.number <= share.count:
            raise RequestError(f"--part {text!r} is not K/N with K from 1 to N, such as 1/4")
        return share

    def parts(self, total: int) -> range:
        """The numbers of its parts, of `total`: none where there are fewer parts than shares."""
        return range((self.number - 1) * total // self.count, self.number * total // self.count)


WHOLE = Share()
"""The pool in one share."""


@dataclass(frozen=True)
class PoolScores:
    """The scores of a whole pool; logits and features stay on disk until rows of them are read."""

    folder: Path
    tap: Tap | None
    """Where the stored features were taken."""
    images: ImageScores
    problems: dict[int, str]
    """Why an image could not be read, by pool index."""

    @property
    def readable(self) -> Bool[np.ndarray, " rows"]:
        """False for the images that could not be read."""
        flags = np.ones(len(self.images.confidence), dtype=bool)
        flags[list(self.problems)] = False
        return flags

    def logits(self, indices: Int[np.ndarray, " picked"]) -> Float[np.ndarray, "picked classes"]:
        """The teacher's float16 logits of sorted pool indices."""
        parts = [_stored(scores_file(self.folder, p), "logits")[rows] for p, rows in _by_part(indices)]
        return np.concatenate(parts)

    def features(self, indices: Int[np.ndarray, " picked"]) -> Float[np.ndarray, "picked width"]:
        """The teacher's float16 penultimate features of pool indices in any order."""
        order = np.argsort(indices, kind="stable")
        blocks = [
            _stored(features_file(self.folder, part, self.tap), "features")[rows]
            for part, rows in _by_part(indices[order])
        ]
        return np.concatenate(blocks)[np.argsort(order, kind="stable")]


def score_pool(
    teacher: Classifier,
    pool: Pool,
    folder: Path,
    *,
    batch_size: int,
    tap: Tap | None,
    max_unreadable: float,
    share: Share = WHOLE,
) -> PoolScores:
    """Score every image of a share of the pool that `folder` has no scores of yet, and open the scores.

    With `tap`, the teacher's tap `last`, features are stored too. Memory does not grow with the pool's pixels.
    Of images outside of the share nothing is opened: their scores are undefined.
    Raises: RequestError when more than `max_unreadable` of the pool cannot be read. Interrupted after SIGINT
    or SIGTERM, once the scores that there are of an unfinished part are kept.
    """
    parts = share.parts(-(-len(pool) // PART_ROWS))
    images = sum(_rows(pool, part) for part in parts)
    # Made once, before the first batch: a block kept for every part lies between the teacher's buffers, and the heap
    # grows around it.
    whole_pool = ImageScores(*(np.empty(len(pool), kind) for kind in SCORES.values()))
    problems: dict[int, str] = {}
    todo, damaged = _cached(folder, parts, tap, whole_pool, problems)
    if damaged:
        say(f"scores: {damaged} of {len(parts)} cached parts are damaged and scored again")
    if not todo:
        say(f"scores: all {images:,} are cached, the teacher is not run")
    else:
        done = images - sum(_rows(pool, part) for part in todo)
        with progress("scoring", images, "images", done) as bar, stop_request() as stop:
            for part in todo:
                head = _read_head(folder, part, tap, batch_size)
                columns = _score_part(teacher, pool, part, batch_size, head, bar.advance, stop)
                problems |= _problems(part, columns)
                if len(problems) > max_unreadable * len(pool):
                    raise TooManyUnreadable(pool, problems, max_unreadable)
                whole = len(columns["confidence"]) == _rows(pool, part)
                _write_part(folder, part, columns, tap, head=not whole)
                if stop.signal is not None:
                    raise Interrupted(stop.signal, "the scores so far are kept, the same command goes on from there")
                _keep(whole_pool, part, columns)
    if len(problems) > max_unreadable * len(pool):
        raise TooManyUnreadable(pool, problems, max_unreadable)
    return PoolScores(folder, tap, whole_pool, dict(sorted(problems.items())))


def _score_part(
    teacher: Classifier, pool: Pool, part: int, batch_size: int, head: Columns, advance: Any, stop: StopRequest
) -> Columns:
    """The columns of a part, of which `head` is scored already; fewer rows where a signal came."""
    start, rows, scored = part * PART_ROWS, _rows(pool, part), 0
    part_columns: Columns = {}
    distances = ImageDistances(teacher.network)

    def keep(columns: Columns) -> None:
        nonlocal scored
        end = scored + len(columns["confidence"])
        for name, values in columns.items():
            if name not in part_columns:  # once for the part: small blocks, one a batch, would scatter over the heap
                part_columns[name] = np.empty((rows, *values.shape[1:]), values.dtype)
            part_columns[name][scored:end] = values
        advance(end - scored)
        scored = end

    if head:
        keep(head)
    for indices, images in pool.batches(batch_size, start + scored, start + rows):
        problems = np.array([images.problems.get(i) for i in range(len(indices))], dtype=object)
        keep({**_score_batch(teacher, distances, images), "problem": problems})
        if stop.signal is not None:
            break
    return {name: values[:scored] for name, values in part_columns.items()}


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
    }
    if "last" in outputs.features:
        columns["features"] = _directions(outputs.features["last"].flatten(1))
    return {name: values.cpu().numpy() for name, values in columns.items()}


def _problems(part: int, columns: Columns) -> dict[int, str]:
    """Why images of a part could not be read, by pool index."""
    return {part * PART_ROWS + i: why for i, why in enumerate(columns["problem"]) if why is not None}


def _directions(features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    """Features in float16. Only their direction is used: a row that is out of range is scaled, one with NaN is zero."""
    features = torch.where(features.isfinite().all(dim=1, keepdim=True), features, 0.0)
    return (features / (features.abs().amax(dim=1, keepdim=True) / 65504).clamp(min=1)).half()


def _write_part(folder: Path, part: int, columns: Columns, tap: Tap | None, head: bool) -> None:
    """Keep a part's scores, or the first of them; the features first, for a part is complete that has both."""
    if tap:
        write_columns(features_file(folder, part, tap, head), {"features": columns["features"]})
    # in one order, also behind the first batches that were read from a file
    write_columns(scores_file(folder, part, head), {name: columns[name] for name in (*SCORES, "logits", "problem")})
    if not head:
        for file in (scores_file(folder, part, True), features_file(folder, part, tap, True)):
            file.unlink(missing_ok=True)


def _cached(
    folder: Path, parts: range, tap: Tap | None, scores: ImageScores, problems: dict[int, str]
) -> tuple[list[int], int]:
    """The parts that are to be scored, and how many of them are damaged; `scores` and `problems` get the others'."""
    todo, damaged = [], 0
    for part in parts:
        if not scores_file(folder, part).exists() or (tap and not features_file(folder, part, tap).exists()):
            todo.append(part)
            continue
        try:
            columns = read_columns(scores_file(folder, part), (*SCORES, "problem"))
            if len(columns["confidence"]) != min(PART_ROWS, len(scores.confidence) - part * PART_ROWS):
                raise Damaged(f"{scores_file(folder, part)} has other rows")
        except Damaged:
            todo.append(part)
            damaged += 1
            continue
        problems |= _problems(part, columns)
        _keep(scores, part, columns)
    return todo, damaged


def _keep(scores: ImageScores, part: int, columns: Columns) -> None:
    """Put a part's columns into those of the whole pool."""
    start = part * PART_ROWS
    for name in SCORES:
        getattr(scores, name)[start : start + len(columns[name])] = columns[name]


def _read_head(folder: Path, part: int, tap: Tap | None, batch_size: int) -> Columns:
    """What an interrupted command has left of a part: whole batches, so that those after it are what they were."""
    try:
        head = read_columns(scores_file(folder, part, True), (*SCORES, "problem", "logits"))
        if tap:
            head |= read_columns(features_file(folder, part, tap, True), ("features",))
    except Damaged:  # or not there
        return {}
    rows = {len(values) for values in head.values()}
    return head if len(rows) == 1 and rows.pop() % batch_size == 0 else {}


def _stored(file: Path, name: str) -> np.ndarray:
    """A column that is read when rows of it are needed. Raises: RequestError where it is damaged."""
    try:
        return read_columns(file, (name,))[name]
    except Damaged as damaged:
        raise RequestError(f"{damaged}; delete it, and the same command scores its images again") from None


def _by_part(indices: Int[np.ndarray, " picked"]) -> Iterator[tuple[int, np.ndarray]]:
    """Sorted pool indices as (part, rows within it)."""
    parts = indices // PART_ROWS
    for rows in np.split(indices, np.flatnonzero(np.diff(parts)) + 1):
        if len(rows):
            part = int(rows[0]) // PART_ROWS
            yield part, rows - part * PART_ROWS


def _rows(pool: Pool, part: int) -> int:
    return min(PART_ROWS, len(pool) - part * PART_ROWS)


def scores_file(folder: Path, part: int, head: bool = False) -> Path:
    """Where the scores of a part are kept, or its first ones that an interrupted command has left."""
    return folder / f"scores-{part:06d}{'.head' if head else ''}.parquet"


def features_file(folder: Path, part: int, tap: Tap | None, head: bool = False) -> Path:
    """Where the features of a part are kept that were taken at `tap`."""
    return folder / f"features-{hash_of(str(tap))}-{part:06d}{'.head' if head else ''}.parquet"


class TooManyUnreadable(RequestError):
    """More of a pool cannot be read than is allowed; holds the parts of its text: a caller can name a flag."""

    def __init__(self, pool: Pool, problems: dict[int, str], share: float) -> None:
        first = sorted(problems)[:3]
        origins = pool.origins(np.array(first))
        named = "; ".join(f"{name} ({problems[i]})" for i, name in zip(first, origins, strict=True))
        self.count, self.share = f"{len(problems)} of {len(pool)} images cannot be read", share
        self.rest = f"{named}; remove them or raise the limit"
        super().__init__(f"{self.count}, above max_unreadable={share:g}: {self.rest}")
