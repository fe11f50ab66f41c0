"""Writing of a selection's folder: shards, scores and, last, the manifest that makes it complete."""

import shutil
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from dfkd.config.option import named
from dfkd.config.tables import differences
from dfkd.data.images.decode import processors, reencoded
from dfkd.data.readers.reader import Unreadable
from dfkd.formats.manifest import BESIDE, MANIFEST, write_manifest
from dfkd.formats.run_records import CHECKPOINT, LOGS, METRICS
from dfkd.formats.shards import BYTES_PER_SHARD, ROWS_PER_SHARD, Rows, Shards, write_shards
from dfkd.select.choose import REASONS, Choice
from dfkd.select.class_dropping import kept_classes
from dfkd.select.journal import JOURNAL, Journal
from dfkd.select.selected import SCORES_AT_ONCE, Pictures, Selected
from dfkd.system.console import progress, say
from dfkd.system.errors import RequestError
from dfkd.system.files import hash_of, replacing, sync, sync_folder
from dfkd.system.locks import LOCK
from dfkd.system.portable import portable

FILES_AT_ONCE = 64
"""Encoded files that are read at once."""
OWN = (LOCK, JOURNAL, CHECKPOINT, METRICS, LOGS, "data-", *BESIDE, MANIFEST)
"""Prefixes of the names in a folder in which a selection is written."""


def is_done(out: Path, shown: str, content: dict[str, Any]) -> bool:
    """Return whether `out` holds this very selection.

    Raises: RequestError if `out` holds anything else, or damaged shards.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST).exists():
        why = "holds files that are not a selection" if out.is_dir() else "is a file"
        raise RequestError(f"--out {shown} {why}; give another folder")
    different = differences(Shards(out).manifest.content.table, content)
    if different:
        raise RequestError(f"--out {shown} holds another selection: {'; '.join(different)}; give another folder")
    with suppress(OSError):  # left by a command that was killed just after its last step
        clear(out)
    return True


def write(partial: Path, out: Path, selected: Selected) -> None:
    """Write the folder under a temporary name and rename it, so that `out` is complete or missing.

    Shards that a killed command of the same request has written are kept, in the folder of the temporary name.
    """
    # with the filter: one that was found again after a kill differs in rounding
    journal = Journal(partial, hash_of([selected.content, selected.filter] if selected.filter else selected.content))
    done = journal.done
    keep = {LOCK, JOURNAL, CHECKPOINT, METRICS, LOGS, *(file.name for file in done)}
    for file in partial.iterdir():  # half-written files, and those of another unfinished selection
        if file.name not in keep:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    start = sum(file.rows for file in done)
    if done:
        say(f"{start:,} images were written before, in {len(done):,} shards")
    with closing(_rows(selected, start)) as rows:  # closes the progress bar before an error is printed
        files = write_shards(partial, rows, journal.fingerprint, done, journal.add)
    _write_scores(partial / "scores.parquet", selected)
    sync_folder(partial)
    write_manifest(partial, _manifest(selected, files))
    journal.remove()
    partial.replace(out)
    sync(out.parent)
    clear(out)


def clear(out: Path) -> None:
    """Remove files that a complete selection no longer needs."""
    (out / LOCK).unlink(missing_ok=True)
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)


def check_partial(partial: Path) -> None:
    """Raise RequestError if the folder of the temporary name holds files of something else."""
    for file in partial.iterdir():
        if not file.name.startswith(OWN):
            raise RequestError(
                f"{partial} is the temporary folder of --out and has another file, {file.name!r}; move it"
            )


def _manifest(selected: Selected, files: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the manifest: counts and results first.

    `config` is the request without the paths, which do not decide the content.
    """
    model, pool, scores, choice = selected.model, selected.pool, selected.scores, selected.choice
    unreadable = np.array([*scores.problems], dtype=np.int64)
    stored = named(type(selected.config), lambda option: option.stored)
    request = {k: v for k, v in portable(asdict(selected.config)).items() if k in stored}
    # raw images are scaled already
    bits = {"bits": selected.bits} if selected.bits is not None and pool.encoded else {}
    return {
        "fingerprint": hash_of(selected.content),
        "teacher": model.spec,
        "source": selected.source,
        "count": len(choice),
        "image": {"encoded": pool.encoded, "size": pool.image_size, "channels": model.channels, **bits},
        "classes": model.classes,
        **({"class_names": list(model.class_names)} if model.class_names else {}),
        "per_class": selected.per_class.tolist(),
        "threshold": choice.threshold,
        "admitted": choice.admitted,
        "reasons": choice.counts(),
        **({"cost": dict(selected.cost)} if selected.cost else {}),
        **({"filter": dict(selected.filter)} if selected.filter else {}),
        "unreadable": [
            {"source": name, "why": scores.problems[i]}
            for i, name in zip(scores.problems, pool.origins(unreadable), strict=True)
        ],
        **({"left_out": dict(selected.left_out)} if selected.left_out else {}),
        "config": request,
        "content": selected.content,
        "files": files,
    }


def _rows(selected: Selected, start: int) -> Generator[Rows, None, None]:
    """Yield the content of each shard, in the pool's order, from the `start`-th selected image on."""
    pool, floor = selected.pool, selected.config.class_dropping
    with progress("writing", len(selected.choice), "images", start) as bar:
        for indices, image in _images(pool, selected.choice, start, selected.store, selected.bits):
            logits, scores = selected.scores.logits(indices), selected.scores.at(indices)
            yield Rows(
                image=image,
                source=pool.origins(indices),
                prediction=scores.prediction,
                confidence=scores.confidence,
                entropy=scores.entropy,
                logits=logits,
                kept_classes=_kept(logits, scores.prediction, floor),
            )
            bar.advance(len(indices))


def _kept(
    logits: Float[np.ndarray, "rows classes"], prediction: Int[np.ndarray, " rows"], floor: float
) -> Bool[np.ndarray, "rows classes"]:
    """Return the mask to store, which always includes the predicted class.

    Logits beyond the range of float16 are clipped, and may then be equal.
    """
    kept = kept_classes(torch.from_numpy(logits), floor).numpy()
    kept[np.arange(len(kept)), prediction] = True
    return kept


def _images(
    pool: Pictures, choice: Choice, first: int, store: int | None, bits: int | None
) -> Iterator[tuple[Int[np.ndarray, " rows"], UInt8[np.ndarray, "rows size size channels"] | list[bytes]]]:
    """Yield the selected images from the `first` on, cut into shards.

    A shard has at most ROWS_PER_SHARD rows and, of encoded files, BYTES_PER_SHARD bytes or one file.
    """
    if not pool.encoded:
        for start in range(first, len(choice), ROWS_PER_SHARD):
            rows = choice.some(start, start + ROWS_PER_SHARD)
            yield rows, _pixels(pool, rows)
        return
    files: list[bytes] = []
    size = 0
    threads = ThreadPoolExecutor(processors())
    for start in range(first, len(choice), FILES_AT_ONCE):
        rows = choice.some(start, start + FILES_AT_ONCE)
        some: Iterable[bytes] = pool.files(rows)
        for file in some if store is None else threads.map(partial(_smaller, pool, store, bits), rows.tolist(), some):
            if files and (size + len(file) > BYTES_PER_SHARD or len(files) == ROWS_PER_SHARD):
                yield choice.some(first, first + len(files)), files
                first, files, size = first + len(files), [], 0
            files.append(file)
            size += len(file)
    if files:
        yield choice.some(first, len(choice)), files


def _smaller(pool: Pictures, store: int, bits: int | None, row: int, file: bytes) -> bytes:
    """Return an encoded file at the working size. Raises: RequestError if it was readable and no longer is."""
    try:
        return reencoded(file, store, bits)
    except Unreadable as why:
        raise _changed(pool, row, str(why)) from None


def _changed(pool: Pictures, row: int, why: str) -> RequestError:
    name = pool.origins(np.array([row]))[0]
    return RequestError(f"{name} was scored and cannot be read any more ({why}); the pool has changed: select again")


def _pixels(pool: Pictures, indices: Int[np.ndarray, " rows"]) -> UInt8[np.ndarray, "rows size size channels"]:
    """Return the pixels of images that were readable when they were scored.

    Raises: RequestError if one no longer is.
    """
    images = pool.images(indices)
    for position, why in images.problems.items():
        raise _changed(pool, int(indices[position]), why)
    return images.pixels


def _write_scores(path: Path, selected: Selected) -> None:
    """Write one row for every pool image, with the reason why the image is selected or not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pool, choice = selected.pool, selected.choice

    def table(start: int) -> Any:
        rows = np.arange(start, min(start + SCORES_AT_ONCE, len(pool)))
        scores = selected.scores.at(rows)
        columns = {
            "source": pool.origins(rows),
            "prediction": scores.prediction,
            "confidence": scores.confidence,
            "entropy": scores.entropy,
            **({} if scores.distance is None else {"distance": scores.distance}),
            "reason": pa.DictionaryArray.from_arrays(pa.array(choice.reasons[rows]), pa.array(REASONS)),
        }
        return pa.table(columns)

    first = table(0)
    with replacing(path) as partial, pq.ParquetWriter(partial, first.schema) as writer:
        writer.write_table(first)
        for start in range(SCORES_AT_ONCE, len(pool), SCORES_AT_ONCE):
            writer.write_table(table(start))
