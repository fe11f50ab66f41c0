"""Pool -> scores: the teacher sees every image once; what it says is kept, part by part, for every later selection."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dfkd.console import progress, say
from dfkd.data import Images, Pool
from dfkd.errors import RequestError
from dfkd.files import cache_folder, hash_of, replacing, write_json
from dfkd.select.methods import ImageScores
from dfkd.taps import Tap
from dfkd.teacher import Classifier

SCORE_FORMAT = 1
PART_ROWS = 16_384
"""Images a part: a killed scoring goes on from its last complete part."""


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
class PoolScores:
    """The scores of a whole pool; logits and features stay on disk until rows of them are asked for."""

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
        return np.concatenate([_read_logits(_scores_file(self.folder, p))[rows] for p, rows in _by_part(indices)])

    def features(self, indices: Int[np.ndarray, " picked"]) -> Float[np.ndarray, "picked width"]:
        """The teacher's float16 penultimate features of pool indices in any order."""
        order = np.argsort(indices, kind="stable")
        blocks = [
            np.load(_features_file(self.folder, part, self.tap), mmap_mode="r")[rows]
            for part, rows in _by_part(indices[order])
        ]
        return np.concatenate(blocks)[np.argsort(order, kind="stable")]


def scores_folder(request: dict[str, Any]) -> Path:
    """Where the scores of this teacher, pool and preprocessing are kept."""
    folder = cache_folder() / "scores" / hash_of(request)
    if not folder.exists():
        write_json(folder / "request.json", request)
    return folder


def score_pool(
    teacher: Classifier, pool: Pool, folder: Path, *, batch_size: int, tap: Tap | None, max_unreadable: float
) -> PoolScores:
    """Score every image that `folder` has no scores of yet, and open the scores.

    With `tap`, the teacher's tap `last`, features are stored too. Memory does not grow with the pool's pixels.
    Raises: RequestError when more than the share `max_unreadable` of the pool cannot be read.
    """
    parts = -(-len(pool) // PART_ROWS)
    todo = [p for p in range(parts) if not _complete(folder, p, tap)]
    if not todo:
        say(f"scores: all {len(pool):,} are cached, the teacher is not run")
    else:
        done = sum(_rows(pool, p) for p in range(parts) if p not in todo)
        limit = max_unreadable * len(pool)
        unreadable: dict[int, str] = {}
        with progress("scoring", len(pool), "images", done) as bar:
            for part in todo:
                columns, problems = _score_part(teacher, pool, part, batch_size, bar.advance)
                unreadable |= problems
                if len(unreadable) > limit:
                    raise _unreadable(pool, unreadable, max_unreadable)
                _write_part(folder, part, columns, problems, tap)
    opened = _open(folder, parts, tap)
    if len(opened.problems) > max_unreadable * len(pool):
        raise _unreadable(pool, opened.problems, max_unreadable)
    return opened


def _score_part(
    teacher: Classifier, pool: Pool, part: int, batch_size: int, advance: Any
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    collected: dict[str, list[np.ndarray]] = {}
    problems: dict[int, str] = {}
    start = part * PART_ROWS
    for indices, images in pool.batches(batch_size, start, start + _rows(pool, part)):
        for name, values in _score_batch(teacher, images).items():
            collected.setdefault(name, []).append(values)
        problems |= {int(indices[i]): why for i, why in images.problems.items()}
        advance(len(indices))
    return {name: np.concatenate(blocks) for name, blocks in collected.items()}, problems


def _score_batch(teacher: Classifier, images: Images) -> dict[str, np.ndarray]:
    outputs = teacher(torch.from_numpy(images.pixels))
    confidence, entropy, prediction = score_logits(outputs.logits)
    columns = {
        "confidence": confidence,
        "entropy": entropy,
        "prediction": prediction.int(),
        "logits": outputs.logits.clamp(-65504, 65504).half(),  # float16's range
    }
    if "last" in outputs.features:
        columns["features"] = _half(outputs.features["last"].flatten(1))
    return {name: values.cpu().numpy() for name, values in columns.items()}


def _half(features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    """Features in float16. Only their direction is used: a row that is out of range is scaled, one with NaN is zero."""
    features = torch.where(features.isfinite().all(dim=1, keepdim=True), features, 0.0)
    return (features / (features.abs().amax(dim=1, keepdim=True) / 65504).clamp(min=1)).half()


def _write_part(
    folder: Path, part: int, columns: dict[str, np.ndarray], problems: dict[int, str], tap: Tap | None
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if tap:
        with replacing(_features_file(folder, part, tap)) as partial, partial.open("wb") as file:
            np.save(file, columns["features"])
    rows = len(columns["confidence"])
    why = [problems.get(part * PART_ROWS + i) for i in range(rows)]
    table = pa.table(
        {
            **{name: columns[name] for name in ("confidence", "entropy", "prediction")},
            "logits": pa.FixedSizeListArray.from_arrays(
                pa.array(columns["logits"].ravel()), columns["logits"].shape[1]
            ),
            "problem": pa.array(why, pa.string()),
        }
    )
    with replacing(_scores_file(folder, part)) as partial:
        pq.write_table(table, partial)


def _open(folder: Path, parts: int, tap: Tap | None) -> PoolScores:
    import pyarrow.parquet as pq

    blocks = [
        pq.read_table(_scores_file(folder, part), columns=["confidence", "entropy", "prediction", "problem"])
        for part in range(parts)
    ]
    columns = [np.concatenate([b[name].to_numpy() for b in blocks]) for name in ("confidence", "entropy", "prediction")]
    problems = {
        part * PART_ROWS + i: why
        for part, block in enumerate(blocks)
        if block["problem"].null_count < len(block)
        for i, why in enumerate(block["problem"].to_pylist())
        if why is not None
    }
    return PoolScores(folder, tap, ImageScores(*columns), problems)


def _by_part(indices: Int[np.ndarray, " picked"]) -> Iterator[tuple[int, np.ndarray]]:
    """Sorted pool indices as (part, rows within it)."""
    parts = indices // PART_ROWS
    for part in np.unique(parts):
        yield int(part), indices[parts == part] - part * PART_ROWS


def _read_logits(file: Path) -> np.ndarray:
    import pyarrow.parquet as pq

    column = pq.read_table(file, columns=["logits"])["logits"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _complete(folder: Path, part: int, tap: Tap | None) -> bool:
    return _scores_file(folder, part).exists() and (not tap or _features_file(folder, part, tap).exists())


def _rows(pool: Pool, part: int) -> int:
    return min(PART_ROWS, len(pool) - part * PART_ROWS)


def _scores_file(folder: Path, part: int) -> Path:
    return folder / f"scores-{part:06d}.parquet"


def _features_file(folder: Path, part: int, tap: Tap | None) -> Path:
    return folder / f"features-{hash_of(str(tap))}-{part:06d}.npy"


def _unreadable(pool: Pool, problems: dict[int, str], share: float) -> RequestError:
    first = sorted(problems)[:3]
    named = "; ".join(f"{name} ({problems[i]})" for i, name in zip(first, pool.sources(np.array(first)), strict=True))
    return RequestError(
        f"{len(problems)} of {len(pool)} images cannot be read, above --max-unreadable {share:g}: {named}; "
        "remove them or raise the limit"
    )
