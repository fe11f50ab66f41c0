"""`dfkd select`: teacher and pool -> a selection folder."""

import inspect
import math
import shutil
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from dfkd import names
from dfkd.config import SelectConfig, differences, portable
from dfkd.console import progress, say
from dfkd.data import Pool, open_pool
from dfkd.device import Place, resolve_place
from dfkd.errors import RequestError
from dfkd.files import PARTIAL, hash_of, output_path, replacing, sync, sync_folder
from dfkd.locks import LOCK, locked
from dfkd.models.load import Model, load_teacher
from dfkd.places import find_taps
from dfkd.select.choose import REASONS, Choice, Method, TooFew, choose
from dfkd.select.class_dropping import kept_classes
from dfkd.select.journal import JOURNAL, Journal
from dfkd.select.score import SCORE_FORMAT, PoolScores, score_pool, scores_folder
from dfkd.shards import BYTES_PER_SHARD, MANIFEST, ROWS_PER_SHARD, Rows, Shards, write_manifest, write_shards
from dfkd.taps import Tap, parse_taps
from dfkd.teacher import Classifier
from dfkd.versions import versions

METHODS = ["dfkd.select.methods"]
FILES_AT_ONCE = 64
OWN = (LOCK, JOURNAL, "data-", "dataset_info.json", "scores.parquet", "state.json", MANIFEST)
"""How the names begin in a folder in which a selection is written."""
SHOWN_CLASSES = 100
"""Counts in the log; the manifest has them all."""


@dataclass(frozen=True)
class Selected:
    """A selection before it is written: what was asked, what of, and what was chosen."""

    config: SelectConfig
    model: Model
    pool: Pool
    scores: PoolScores
    choice: Choice
    content: dict[str, Any]
    """Everything that decides the selection."""


def run(config: SelectConfig) -> Path:
    """Select as `config` says; a complete selection of the same request is left as it is. Returns its folder."""
    out = output_path(config.out)
    method_name = _check(config)
    place = resolve_place(config.device, config.precision)
    model = load_teacher(config.teacher, normalize=config.normalize, image_size=config.image_size)
    pool = open_pool(config.pool, image_size=model.image_size, channels=model.channels)
    say(
        f"teacher {model.spec}: {model.classes} classes, input {pool.image_size} pixels, {model.channels} channels, "
        f"normalize {model.normalize}, {place.dtype} on {place.device}; pool: {len(pool):,} images"
    )
    if config.count is not None and config.count > len(pool):
        raise RequestError(f"--count {config.count} is above the pool's {len(pool)} images")
    tap = _features_tap(config, model, pool)
    scoring = _scoring_request(config, model, pool, place)
    content = {**scoring, "options": _options(config, method_name, tap), "seed": config.seed}
    if _is_done(out, config.out, content):
        say(f"{config.out}: this selection is complete already")
        return out
    partial = out.with_name(out.name + PARTIAL)
    with locked(partial, config.out):
        if _is_done(out, config.out, content):  # another command has finished it since
            say(f"{config.out}: this selection is complete already")
            return out
        _check_partial(partial)
        try:
            scores = score_pool(
                Classifier(model, place, {"last": tap} if tap else {}),
                pool,
                scores_folder(scoring),
                batch_size=config.batch_size,
                tap=tap,
                max_unreadable=config.max_unreadable,
            )
            selected = Selected(config, model, pool, scores, _choose(config, method_name, scores), content)
            _write(partial, out, selected)
        except RequestError:  # it will not be gone on with
            shutil.rmtree(partial, ignore_errors=True)
            raise
    _report(selected)
    return out


def _check(config: SelectConfig) -> names.Named:
    """Refuse what can be refused before any work. Returns the parsed method."""
    parse_taps(config.teacher_taps)
    named = names.parse(config.method)
    target = names.find(named.name, METHODS, "selection method")
    names.check_options(target, named, "selection method", {"scores": None, "rng": None})
    takes_gamma = "gamma" in inspect.signature(target).parameters
    name = named.name if "." in named.name else target.__name__
    return names.Named(name, ({"gamma": config.gamma} if takes_gamma else {}) | dict(named.options))


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
        "versions": versions("torch", "torchvision", "numpy", "pillow"),
    }


def _options(config: SelectConfig, method: names.Named, tap: Tap | None) -> dict[str, Any]:
    return {
        "method": portable(str(method)),
        "count": config.count,
        "class_dropping": config.class_dropping,
        "balance": config.balance,
        "deduplicate": config.deduplicate,
        **({"features": str(tap), "faiss": version("faiss-cpu")} if tap else {}),
        **({"code": code} if (code := names.code_of(names.find(method.name, METHODS, "selection method"))) else {}),
    }


def _is_done(out: Path, asked: str, content: dict[str, Any]) -> bool:
    """Whether `out` is this very selection. Raises: RequestError where it holds anything else, or damaged shards."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST).exists():
        raise RequestError(f"--out {asked} holds something that is no selection; give another folder")
    different = differences(Shards(out).manifest["content"], content)
    if different:
        raise RequestError(f"--out {asked} holds another selection: {'; '.join(different)}; give another folder")
    with suppress(OSError):  # a command that was killed just after its last step
        (out / LOCK).unlink()
    return True


def _features_tap(config: SelectConfig, model: Model, pool: Pool) -> Tap | None:
    """Where the teacher's features are taken, if this selection needs them."""
    if config.deduplicate is None and config.balance != "cluster":
        return None
    example = torch.zeros(1, model.channels, pool.image_size, pool.image_size)
    return find_taps(model.module, example, parse_taps(config.teacher_taps), ("last",)).taps["last"]


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
        own_gamma = "gamma" in names.parse(config.method).options  # then the flag would change nothing
        if "gamma" in method.options and not own_gamma and few.wanted <= few.usable and few.left == few.admitted:
            enough = math.ceil(1000 * few.wanted / few.usable) / 1000
            raise RequestError(f"{few}; --gamma {enough:g} admits enough, or ask for {few.left}") from None
        raise RequestError(f"{few}; ask for {few.left}") from None


def _write(partial: Path, out: Path, selected: Selected) -> None:
    """Write the whole folder under a temporary name and rename it, so that `out` is complete or not there.

    Shards that a killed command of the same request has written are kept, in the folder of the temporary name.
    """
    journal = Journal(partial, hash_of(selected.content))
    done = journal.done
    keep = {LOCK, JOURNAL, *(file["name"] for file in done)}
    for file in partial.iterdir():  # half written, or of another selection that was not finished
        if file.name not in keep:
            file.unlink()
    start = sum(file["rows"] for file in done)
    if done:
        say(f"{start:,} images were written before, in {len(done):,} shards")
    with closing(_rows(selected, start)) as rows:  # with its progress bar, before an error is told
        files = write_shards(partial, rows, journal.fingerprint, done, journal.add)
    _write_scores(partial / "scores.parquet", selected)
    sync_folder(partial)
    write_manifest(partial, _manifest(selected, files))
    journal.remove()
    partial.replace(out)
    sync(out.parent)
    (out / LOCK).unlink(missing_ok=True)


def _check_partial(partial: Path) -> None:
    """Raise RequestError where the folder of the temporary name is somebody else's."""
    for file in partial.iterdir():
        if not file.name.startswith(OWN):
            raise RequestError(f"{partial} is needed and holds {file.name!r}, which is no part of a selection; move it")


def _manifest(selected: Selected, files: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and results first; `config` is what was asked, without the paths, which do not decide the content."""
    model, pool, scores, choice = selected.model, selected.pool, selected.scores, selected.choice
    predictions = scores.images.prediction[choice.indices]
    unreadable = np.array([*scores.problems], dtype=np.int64)
    left_out = ("teacher", "pool", "out", "preset")
    asked = {k: v for k, v in portable(asdict(selected.config)).items() if k not in left_out}
    return {
        "fingerprint": hash_of(selected.content),
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
            for i, name in zip(scores.problems, pool.sources(unreadable), strict=True)
        ],
        "config": asked,
        "content": selected.content,
        "files": files,
    }


def _rows(selected: Selected, start: int) -> Generator[Rows, None, None]:
    """The shards' content, a shard at a time, in the pool's order, from the `start`-th image on."""
    pool, scores, picked = selected.pool, selected.scores, selected.choice.indices
    floor = selected.config.class_dropping
    with progress("writing", len(picked), "images", start) as bar:
        for indices, image in _images(pool, picked[start:]):
            logits = scores.logits(indices)
            yield Rows(
                image=image,
                source=pool.sources(indices),
                prediction=scores.images.prediction[indices],
                confidence=scores.images.confidence[indices],
                entropy=scores.images.entropy[indices],
                logits=logits,
                kept_classes=_kept(logits, scores.images.prediction[indices], floor),
            )
            bar.advance(len(indices))


def _kept(
    logits: Float[np.ndarray, "rows classes"], prediction: Int[np.ndarray, " rows"], floor: float
) -> Bool[np.ndarray, "rows classes"]:
    """The mask to store. The predicted class is in it also where logits so large that float16 cuts them are alike."""
    kept = kept_classes(torch.from_numpy(logits), floor).numpy()
    kept[np.arange(len(kept)), prediction] = True
    return kept


def _images(
    pool: Pool, indices: Int[np.ndarray, " selected"]
) -> Iterator[tuple[Int[np.ndarray, " rows"], UInt8[np.ndarray, "rows size size channels"] | list[bytes]]]:
    """The selected images, cut into shards: at most so many rows, and of encoded files at most so many bytes."""
    if not pool.encoded:
        for start in range(0, len(indices), ROWS_PER_SHARD):
            rows = indices[start : start + ROWS_PER_SHARD]
            yield rows, _pixels(pool, rows)
        return
    files: list[bytes] = []
    first = size = 0
    for start in range(0, len(indices), FILES_AT_ONCE):
        for file in pool.files(indices[start : start + FILES_AT_ONCE]):
            if files and (size + len(file) > BYTES_PER_SHARD or len(files) == ROWS_PER_SHARD):
                yield indices[first : first + len(files)], files
                first, files, size = first + len(files), [], 0
            files.append(file)
            size += len(file)
    if files:
        yield indices[first:], files


def _pixels(pool: Pool, indices: Int[np.ndarray, " rows"]) -> UInt8[np.ndarray, "rows size size channels"]:
    """The pixels of images that were readable when they were scored. Raises: RequestError where one no longer is."""
    images = pool.images(indices)
    for position, why in images.problems.items():
        name = pool.sources(indices[position : position + 1])[0]
        raise RequestError(f"{name} was scored and cannot be read any more ({why}); the pool has changed: select again")
    return images.pixels


def _write_scores(path: Path, selected: Selected) -> None:
    """One row for every pool image, with the reason for which it is in or out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pool, images, choice = selected.pool, selected.scores.images, selected.choice

    def table(start: int) -> Any:
        rows = np.arange(start, min(start + 8 * ROWS_PER_SHARD, len(pool)))
        columns = {
            "source": pool.sources(rows),
            "prediction": images.prediction[rows],
            "confidence": images.confidence[rows],
            "entropy": images.entropy[rows],
            "reason": pa.DictionaryArray.from_arrays(pa.array(choice.reasons[rows]), pa.array(REASONS)),
        }
        return pa.table(columns)

    first = table(0)
    with replacing(path) as partial, pq.ParquetWriter(partial, first.schema) as writer:
        writer.write_table(first)
        for start in range(8 * ROWS_PER_SHARD, len(pool), 8 * ROWS_PER_SHARD):
            writer.write_table(table(start))


def _report(selected: Selected) -> None:
    out, choice, scores, pool = selected.config.out, selected.choice, selected.scores, selected.pool
    counts = {reason: n for reason, n in choice.counts().items() if n}
    per_class = np.bincount(scores.images.prediction[choice.indices])
    if choice.threshold is not None:
        say(f"threshold: confidence >= {choice.threshold:.4f} admits {choice.admitted:,} of {len(pool):,} images")
    say(f"images by reason: {', '.join(f'{n:,} {reason}' for reason, n in counts.items())}")
    more = f" and {len(per_class) - SHOWN_CLASSES:,} classes more" if len(per_class) > SHOWN_CLASSES else ""
    say(f"selected by predicted class: {per_class[:SHOWN_CLASSES].tolist()}{more}")
    if scores.problems:
        say(f"unreadable and skipped: {len(scores.problems):,}; {MANIFEST} names them")
    say(f"{out}: {len(choice.indices):,} images; look at them with: dfkd inspect {out} --out {out}.html")
