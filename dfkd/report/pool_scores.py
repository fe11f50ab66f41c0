"""The scores of a selection's whole pool, with the reason why each image is in or out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from dfkd.formats.manifest import HINT, Manifest
from dfkd.select.choose import NON_FINITE, REASONS, UNREADABLE
from dfkd.system.checksums import check_file
from dfkd.system.errors import RequestError

UNSCORED = (UNREADABLE, NON_FINITE)
"""Reasons of pool images whose scores have no meaning."""


@dataclass(frozen=True)
class ScoredPool:
    """The scores of all pool images that have some, with their rows in the pool."""

    confidence: Float[np.ndarray, " rows"]
    entropy: Float[np.ndarray, " rows"]
    prediction: Int[np.ndarray, " rows"]
    reason: Int[np.ndarray, " rows"]
    """Index of each image's reason in `REASONS`."""
    row: Int[np.ndarray, " rows"]
    images: int
    """Number of images of the pool, with those that have no scores."""
    distance: Float[np.ndarray, " rows"] | None = None

    def of(self, *reasons: int) -> Int[np.ndarray, " rows"]:
        """Return the positions of the images with any of the given reasons."""
        return np.flatnonzero(np.isin(self.reason, reasons))

    def table(self) -> dict[str, Float[np.ndarray, " rows"]]:
        """Return confidence and entropy by name."""
        return {"confidence": self.confidence, "entropy": self.entropy}


def read_pool_scores(path: Path, manifest: Manifest) -> ScoredPool | None:
    """Read the scores of a pool. None if the images are not from a pool, or if no image has scores.

    Raises: RequestError if the file is not what was written.
    """
    if not path.exists():
        return None
    for written in manifest.beside:
        if written.name == path.name:
            check_file(path, written, HINT)
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        there = pq.read_schema(path).names
        names = ["confidence", "entropy", *(["distance"] if "distance" in there else [])]
        table = pq.read_table(path, columns=[name for name in (*names, "prediction", "reason") if name in there])
        for name in names:
            if not pa.types.is_floating(table[name].type):
                raise ValueError(f"its {name} is {table[name].type}, not numbers")
        if not pa.types.is_integer(table["prediction"].type):
            raise ValueError(f"its prediction is {table['prediction'].type}, not whole numbers")
        reason = pc.index_in(table["reason"].cast("string"), pa.array(REASONS)).fill_null(-1).to_numpy()
        columns = {name: table[name].to_numpy().astype(np.float32) for name in names}
        prediction = table["prediction"].to_numpy().astype(np.int64)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise RequestError(f"{path} cannot be read ({error}); make the selection again") from None
    usable = np.flatnonzero(~np.isin(reason, [-1, *UNSCORED]))
    if len(usable) == 0:
        return None
    if not 0 <= prediction[usable].min() <= prediction[usable].max() < manifest.classes:
        raise RequestError(f"{path} holds predictions outside its {manifest.classes} classes; make the selection again")
    distance = columns["distance"][usable] if "distance" in columns else None
    known = distance is not None and not np.isnan(distance).all()
    return ScoredPool(
        columns["confidence"][usable],
        columns["entropy"][usable],
        prediction[usable],
        reason[usable],
        usable,
        len(reason),
        distance if known else None,
    )
