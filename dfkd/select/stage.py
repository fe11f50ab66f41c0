"""`dfkd select`: teacher and pool -> a selection folder."""

import inspect
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8

from dfkd import names
from dfkd.config import SelectConfig, differences
from dfkd.console import progress, say
from dfkd.data import Pool, open_pool
from dfkd.device import Place, resolve_place
from dfkd.errors import RequestError
from dfkd.files import PARTIAL, hash_of
from dfkd.models.load import Model, load_model
from dfkd.select.choose import REASONS, Choice, Method, TooFew, choose
from dfkd.select.class_dropping import kept_classes
from dfkd.select.score import SCORE_FORMAT, PoolScores, score_pool, scores_folder
from dfkd.shards import MANIFEST, ROWS_PER_SHARD, Rows, read_manifest, write_manifest, write_shards
from dfkd.taps import Tap, find_taps, parse_taps
from dfkd.teacher import Classifier
from dfkd.versions import versions

METHODS = ["dfkd.select.methods"]


def run(config: SelectConfig) -> Path:
    """Select as `config` says; a complete selection of the same request is left as it is. Returns its folder."""
    out = Path(config.out)
    method_name = _check(config)
    place = resolve_place(config.device, config.precision)
    model = load_model(config.teacher, normalize=config.normalize, image_size=config.image_size)
    pool = open_pool(config.pool, image_size=model.image_size, channels=model.channels)
    say(
        f"teacher {model.spec}: {model.classes} classes, input {pool.image_size} pixels, {model.channels} channels, "
        f"normalize {model.normalize}, {place.dtype} on {place.device}; pool: {len(pool):,} images"
    )
    scoring = _scoring_request(config, model, pool, place)
    content = {**scoring, "options": _options(config, method_name), "seed": config.seed}
    if _is_done(out, content):
        say(f"{out}: this selection is complete already")
        return out
    scores = _scores(config, model, pool, place, scores_folder(scoring))
    choice = _choose(config, method_name, scores)
    _write(out, config, model, pool, scores, choice, content)
    _report(out, config, choice, scores, pool)
    return out


def _check(config: SelectConfig) -> names.Named:
    """Refuse what can be refused before any work. Returns the parsed method."""
    if config.count is not None and config.count < 1:
        raise RequestError(f"--count {config.count} is not at least 1")
    if not 0 <= config.class_dropping < 1:
        raise RequestError(f"--class-dropping {config.class_dropping} is not at least 0 and below 1")
    if config.deduplicate is not None and not 0 < config.deduplicate <= 1:
        raise RequestError(f"--deduplicate {config.deduplicate} is not above 0 and at most 1")
    if config.batch_size < 1:
        raise RequestError(f"--batch-size {config.batch_size} is not at least 1")
    named = names.parse(config.method)
    target = names.find(named.name, METHODS, "selection method")
    names.check_options(target, named, "selection method", {"scores": None, "rng": None})
    takes_gamma = "gamma" in inspect.signature(target).parameters
    return names.Named(named.name, ({"gamma": config.gamma} if takes_gamma else {}) | dict(named.options))


def _method(named: names.Named) -> Method:
    target = names.find(named.name, METHODS, "selection method")
    return lambda scores, rng: names.build(target, named, "selection method", scores=scores, rng=rng)


def _scoring_request(config: SelectConfig, model: Model, pool: Pool, place: Place) -> dict[str, Any]:
    """Everything that decides the scores; the cache's key."""
    return {
        "teacher": model.fingerprint(),
        "preprocess": {"normalize": model.normalize, "image_size": pool.image_size, "channels": model.channels},
        "pool": pool.identity,
        "compute": {**place.describe(), "batch_size": config.batch_size, "score_format": SCORE_FORMAT},
        "versions": versions("torch", "numpy", "pillow"),
    }


def _options(config: SelectConfig, method: names.Named) -> dict[str, Any]:
    return {
        "method": str(method),
        "count": config.count,
        "class_dropping": config.class_dropping,
        "balance": config.balance,
        "deduplicate": config.deduplicate,
    }


def _is_done(out: Path, content: dict[str, Any]) -> bool:
    """Whether `out` is this very selection. Raises: RequestError where it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST).exists():
        raise RequestError(f"--out {out} holds something that is no selection; give another folder")
    different = differences(read_manifest(out)["content"], content)
    if different:
        raise RequestError(f"--out {out} holds another selection: {'; '.join(different)}; give another folder")
    return True


def _scores(config: SelectConfig, model: Model, pool: Pool, place: Place, folder: Path) -> PoolScores:
    with_features = config.deduplicate is not None or config.balance == "cluster"
    taps: dict[str, Tap] = {}
    if with_features:
        example = torch.zeros(1, model.channels, pool.image_size, pool.image_size)
        taps = find_taps(model.module, example, parse_taps(config.teacher_taps), ("last",)).taps
    teacher = Classifier(model, place, taps)
    return score_pool(
        teacher,
        pool,
        folder,
        batch_size=config.batch_size,
        with_features=with_features,
        max_unreadable=config.max_unreadable,
    )


def _choose(config: SelectConfig, method: names.Named, scores: PoolScores) -> Choice:
    try:
        return choose(
            scores.images,
            scores.readable,
            _method(method),
            count=config.count,
            seed=config.seed,
            features=scores.features,
            balance=config.balance,
            deduplicate=config.deduplicate,
        )
    except TooFew as few:
        if "gamma" in method.options and few.wanted <= few.usable and few.left == few.admitted:
            enough = math.ceil(1000 * few.wanted / few.usable) / 1000
            raise RequestError(f"{few}; --gamma {enough:g} admits enough, or ask for {few.left}") from None
        raise RequestError(f"{few}; ask for {few.left}") from None


def _write(
    out: Path,
    config: SelectConfig,
    model: Model,
    pool: Pool,
    scores: PoolScores,
    choice: Choice,
    content: dict[str, Any],
) -> None:
    """Write the whole folder under a temporary name and rename it, so that `out` is complete or not there."""
    out = out.resolve()  # a link's target can be replaced, and `.` has a name
    partial = out.with_name(out.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    files = write_shards(partial, _rows(config, pool, scores, choice), hash_of(content))
    _write_scores(partial / "scores.parquet", pool, scores, choice)
    predictions = scores.images.prediction[choice.indices]
    write_manifest(
        partial,
        {
            "fingerprint": hash_of(content),
            "teacher": model.spec,
            "source": "selection",
            "count": len(choice.indices),
            "image": {"encoded": pool.encoded, "size": pool.image_size, "channels": model.channels},
            "classes": model.classes,
            "per_class": np.bincount(predictions, minlength=model.classes).tolist(),
            "threshold": choice.threshold,
            "admitted": choice.admitted,
            "reasons": choice.counts(),
            "unreadable": [
                {"source": name, "why": scores.problems[i]}
                for i, name in zip(
                    scores.problems, pool.sources(np.array([*scores.problems], dtype=np.int64)), strict=True
                )
            ],
            "content": content,
            "files": files,
        },
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(out)


def _rows(config: SelectConfig, pool: Pool, scores: PoolScores, choice: Choice) -> Iterator[Rows]:
    """The shards' content, a shard at a time, in the pool's order."""
    with progress("writing", len(choice.indices), "images") as bar:
        for start in range(0, len(choice.indices), ROWS_PER_SHARD):
            indices = choice.indices[start : start + ROWS_PER_SHARD]
            logits = scores.logits(indices)
            yield Rows(
                image=pool.files(indices) if pool.encoded else _pixels(pool, indices),
                source=pool.sources(indices),
                prediction=scores.images.prediction[indices],
                confidence=scores.images.confidence[indices],
                entropy=scores.images.entropy[indices],
                logits=logits,
                kept_classes=kept_classes(torch.from_numpy(logits), config.class_dropping).numpy(),
            )
            bar.advance(len(indices))


def _pixels(pool: Pool, indices: Int[np.ndarray, " rows"]) -> UInt8[np.ndarray, "rows size size channels"]:
    """The pixels of images that were readable when they were scored. Raises: RequestError where one no longer is."""
    images = pool.images(indices)
    for position, why in images.problems.items():
        name = pool.sources(indices[position : position + 1])[0]
        raise RequestError(f"{name} was scored and cannot be read any more ({why}); the pool has changed: select again")
    return images.pixels


def _write_scores(path: Path, pool: Pool, scores: PoolScores, choice: Choice) -> None:
    """One row for every pool image, with the reason for which it is in or out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, writer = scores.images, None
    for start in range(0, len(pool), 8 * ROWS_PER_SHARD):
        rows = np.arange(start, min(start + 8 * ROWS_PER_SHARD, len(pool)))
        reasons = pa.DictionaryArray.from_arrays(pa.array(choice.reasons[rows]), pa.array(REASONS))
        table = pa.table(
            {
                "source": pool.sources(rows),
                "prediction": images.prediction[rows],
                "confidence": images.confidence[rows],
                "entropy": images.entropy[rows],
                "reason": reasons,
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def _report(out: Path, config: SelectConfig, choice: Choice, scores: PoolScores, pool: Pool) -> None:
    counts = {reason: n for reason, n in choice.counts().items() if n}
    per_class = np.bincount(scores.images.prediction[choice.indices])
    if choice.threshold is not None:
        say(f"threshold: confidence >= {choice.threshold:.4f} admits {choice.admitted:,} of {len(pool):,} images")
    say(f"images by reason: {', '.join(f'{n:,} {reason}' for reason, n in counts.items())}")
    say(f"selected by predicted class: {per_class.tolist()}")
    if scores.problems:
        say(f"{len(scores.problems)} unreadable images were skipped; {out / MANIFEST} names them")
    say(f"{out}: {len(choice.indices):,} images; look at them with: dfkd inspect {out} --out {out}.html")
