"""Section of a page that tries other methods on a selection's stored scores, or on a sample of them."""

import base64
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import numpy as np
from jaxtyping import Int

from dfkd.formats.manifest import Manifest
from dfkd.report.charts import Number
from dfkd.report.embedding import Embedding
from dfkd.report.markup import Html, data, section, tag
from dfkd.report.pool_scores import ScoredPool
from dfkd.select import methods
from dfkd.select.choose import REASONS, SELECTED
from dfkd.system.names import parse

GAMMA = signature(methods.threshold).parameters["gamma"].default
"""Position of the slider for a selection by another method."""
MOST = 100_000
"""Largest number of scores in a page. A larger pool is sampled."""
NOTE = (
    "The page computes the selection from the stored scores; no command runs. It ignores near-duplicates and "
    "clusters, and its random images differ from those of --seed. Selected images of the gallery have a blue frame."
)

DOTS = "Blue dots are selected images, grey dots are the others."


def explorer(
    scores: ScoredPool,
    manifest: Manifest,
    pictured: Int[np.ndarray, " pictured"],
    embed: Callable[[Int[np.ndarray, " rows"]], Embedding | None] = lambda rows: None,
) -> Html:
    """Return the section of the page. Any sample has the images at the pool rows `pictured`.

    `embed` returns two coordinates for pool rows, or None.
    """
    rows = _sample(scores, pictured)
    embedded = embed(scores.row[rows])
    options: Mapping[str, Any] = manifest.content.options.table
    method = parse(str(options["method"]))
    names = ["threshold", "statistics", "random", "confidence", "entropy"]
    if scores.distance is None:
        names.remove("statistics")
    begin = method.name if method.name in names else names[0]
    balance = options.get("balance")
    scale = len(scores.row) / len(rows)
    planes = {"entropy": "confidence and entropy"}
    planes |= {"distance": "confidence and distance"} if scores.distance is not None else {}
    planes |= {"embedding": f"two directions of the teacher's {embedded.kind}"} if embedded is not None else {}
    gamma = method.options.get("gamma", GAMMA) if method.name == begin else GAMMA
    count = round(manifest.count / scale)
    step = max(1, len(rows) // 1000)
    form = tag(
        "form",
        _choice("Method", "method", dict(zip(names, names, strict=True)), begin),
        _slider("Gamma", "gamma", 0.01, 1, 0.01, gamma),
        _slider("Count", "count", count % step or step, len(rows), step, count),  # it stops at least + k * step
        _choice("Balance", "balance", {"none": "none", "class": "class"}, "class" if balance == "class" else "none"),
        _choice("Plane", "up", planes, "distance" if begin == "statistics" else "entropy"),
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
                tag(
                    "p",
                    DOTS,
                    tag("span", " The broken line is the threshold.", id="explore-line"),
                    tag("span", _embedded_words(embedded), id="explore-directions"),
                    class_="note",
                ),
                tag("div", "Point at a dot.", id="explore-dot"),
            ),
            tag("h3", "Classes before balance (grey) and after (blue)"),
            tag("ol", id="explore-classes"),
            class_="explore",
            hidden="",
        ),
        data("pool", {**_columns(scores, rows, manifest, scale), **_points(embedded)}),
    )


def _embedded_words(embedded: Embedding | None) -> str:
    if embedded is None:
        return ""
    return (
        f" The two directions are those in which the teacher's {embedded.kind} vary most (PCA): "
        f"{embedded.share:.0%} of the variance. A number is a class, at the mean of its images."
    )


def _points(embedded: Embedding | None) -> dict[str, Any]:
    """Return both coordinates as integers from 1 to 65535. 0 marks an image without coordinates."""
    if embedded is None:
        return {"east": None, "north": None}
    low, high = (bound(embedded.points, axis=0) for bound in (np.nanmin, np.nanmax))
    shares = (embedded.points - low) / np.where(high > low, high - low, 1)
    steps = np.where(np.isnan(shares), 0, 1 + np.nan_to_num(shares) * 65534).round().astype("<u2")
    return {
        name: base64.b64encode(np.ascontiguousarray(steps[:, axis]).tobytes()).decode()
        for axis, name in enumerate(("east", "north"))
    }


def _sample(scores: ScoredPool, pictured: Int[np.ndarray, " pictured"]) -> Int[np.ndarray, " sample"]:
    """Return positions in the scores: all, or a sample that includes the images of the page."""
    everything = np.arange(len(scores.row))
    if len(everything) <= MOST:
        return everything
    shown = np.flatnonzero(np.isin(scores.row, pictured))
    drawn = np.random.default_rng(0).choice(len(everything), MOST, replace=False)
    return np.union1d(drawn, shown)


def _columns(scores: ScoredPool, rows: Int[np.ndarray, " sample"], manifest: Manifest, scale: float) -> dict[str, Any]:
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
        "selected": SELECTED,
        "classes": manifest.classes,
        "names": manifest.class_names,
        "scale": scale,
    }


def _choice(label: str, name: str, values: Mapping[str, str], chosen: str) -> Html:
    options = (
        tag("option", words, value=value, selected="" if value == chosen else None) for value, words in values.items()
    )
    return tag("label", f"{label} ", tag("select", *options, name=name))


def _slider(label: str, name: str, least: Number, most: Number, step: Number, value: Number) -> Html:
    shown = tag("output", name=f"{name}Shown")
    slider = tag("input", type="range", name=name, min=least, max=most, step=step, value=value)
    return tag("label", f"{label} ", slider, shown)
