"""What a page needs to try other methods on a selection's stored scores: the scores themselves, or a sample of them."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dfkd.formats.manifest import HINT, Manifest
from dfkd.report.charts import Number
from dfkd.report.markup import Html, data, section, tag
from dfkd.select.choose import NON_FINITE, REASONS, SELECTED, UNREADABLE
from dfkd.system.checksums import check_file
from dfkd.system.errors import RequestError

MOST = 100_000
"""Scores in a page; of a larger pool a sample."""
UNSCORED = (UNREADABLE, NON_FINITE)
"""Reasons of pool images whose scores mean nothing."""
NOTE = (
    "All of this is computed in the page, on the stored scores: nothing runs. It does not know near-duplicates and "
    "clusters, and draws other random images than --seed does. Images of the gallery that it picks have a blue frame."
)


@dataclass(frozen=True)
class PoolScores:
    """The scores of all pool images that have some, with their positions in the pool."""

    confidence: Float[np.ndarray, " rows"]
    entropy: Float[np.ndarray, " rows"]
    prediction: Int[np.ndarray, " rows"]
    reason: Int[np.ndarray, " rows"]
    """Positions in `REASONS`."""
    row: Int[np.ndarray, " rows"]
    images: int
    """Of the pool, with those that have no scores."""
    distance: Float[np.ndarray, " rows"] | None = None

    def table(self) -> dict[str, Float[np.ndarray, " rows"]]:
        """The two scores of every method."""
        return {"confidence": self.confidence, "entropy": self.entropy}


def read_pool_scores(path: Path, manifest: Manifest) -> PoolScores | None:
    """The scores of a pool; None where the samples do not come from one, or none of its images has any.

    Raises: RequestError where the file is not what was written.
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
    usable = np.flatnonzero(~np.isin(reason, [-1, *map(REASONS.index, UNSCORED)]))
    if len(usable) == 0:
        return None
    if not 0 <= prediction[usable].min() <= prediction[usable].max() < manifest.classes:
        raise RequestError(f"{path} holds predictions outside its {manifest.classes} classes; make the selection again")
    distance = columns["distance"][usable] if "distance" in columns else None
    known = distance is not None and not np.isnan(distance).all()
    return PoolScores(
        columns["confidence"][usable],
        columns["entropy"][usable],
        prediction[usable],
        reason[usable],
        usable,
        len(reason),
        distance if known else None,
    )


def explorer(scores: PoolScores, manifest: Manifest, pictured: Int[np.ndarray, " pictured"]) -> Html:
    """The section of the page; images at the rows `pictured` of the pool are in any sample."""
    rows = _sample(scores, pictured)
    options: Mapping[str, Any] = manifest.content.options.table
    method = str(options["method"]).partition(":")[0]
    methods = ["threshold", "statistics", "random", "confidence", "entropy"]
    if scores.distance is None:
        methods.remove("statistics")
    begin = method if method in methods else methods[0]
    balance = options.get("balance")
    scale = len(scores.row) / len(rows)
    up = ["entropy", *(["distance"] if scores.distance is not None else [])]
    gamma = _given_gamma(str(options["method"]))
    count = round(manifest.count / scale)
    form = tag(
        "form",
        _choice("Method", "method", methods, begin),
        _slider("Gamma", "gamma", 0.01, 1, 0.01, gamma),
        _slider("Count", "count", 1, len(rows), max(1, len(rows) // 1000), count),
        _choice("Balance", "balance", ["none", "class"], "class" if balance == "class" else "none"),
        _choice("Upwards", "up", up, "distance" if begin == "statistics" else "entropy"),
    )
    sampled = f" It has a sample of {len(rows):,} of {len(scores.row):,} scores." if len(rows) < len(scores.row) else ""
    return section(
        "Explore the pool",
        tag("noscript", tag("p", "This section needs scripts, which are turned off.", class_="note")),
        tag(
            "div",
            tag("p", NOTE + sampled, class_="note"),
            form,
            tag("p", id="explore-says", aria_live="polite"),
            tag("pre", id="explore-command", class_="copied"),
            tag(
                "div",
                tag("canvas", id="plane", role="img", aria_label="Every image by confidence and entropy or distance"),
                tag("p", "Blue dots are picked, grey ones are not. The broken line is the threshold.", class_="note"),
                tag("div", "Point at a dot.", id="explore-dot"),
            ),
            tag("h3", "Classes before balance (grey) and after (blue)"),
            tag("ol", id="explore-classes"),
            class_="explore",
            hidden="",
        ),
        data("pool", _columns(scores, rows, manifest.classes, scale)),
    )


def _sample(scores: PoolScores, pictured: Int[np.ndarray, " pictured"]) -> Int[np.ndarray, " sample"]:
    """Positions in the scores: all, or a sample with those of the images that the page shows."""
    everything = np.arange(len(scores.row))
    if len(everything) <= MOST:
        return everything
    shown = np.flatnonzero(np.isin(scores.row, pictured))
    drawn = np.random.default_rng(0).choice(len(everything), MOST, replace=False)
    return np.union1d(drawn, shown)


def _columns(scores: PoolScores, rows: Int[np.ndarray, " sample"], classes: int, scale: float) -> dict[str, Any]:
    def packed(values: np.ndarray, kind: str) -> str:
        return base64.b64encode(values[rows].astype(kind).tobytes()).decode()

    return {
        "confidence": packed(scores.confidence, "<f4"),
        "entropy": packed(scores.entropy, "<f4"),
        "distance": None if scores.distance is None else packed(scores.distance, "<f4"),
        "prediction": packed(scores.prediction, "<u4"),
        "reason": packed(scores.reason, "u1"),
        "row": packed(scores.row, "<u4"),
        "reasons": list(REASONS),
        "selected": REASONS.index(SELECTED),
        "classes": classes,
        "scale": scale,
    }


def _given_gamma(method: str) -> float:
    """The gamma that a method's text says, else its default."""
    _, found, rest = method.partition("gamma=")
    try:
        return float(rest.split(",")[0]) if found else 0.7
    except ValueError:
        return 0.7


def _choice(label: str, name: str, values: list[str], chosen: str) -> Html:
    options = (tag("option", value, value=value, selected="" if value == chosen else None) for value in values)
    return tag("label", f"{label} ", tag("select", *options, name=name))


def _slider(label: str, name: str, least: Number, most: Number, step: Number, value: Number) -> Html:
    shown = tag("output", name=f"{name}Shown")
    slider = tag("input", type="range", name=name, min=least, max=most, step=step, value=value)
    return tag("label", f"{label} ", slider, shown)
