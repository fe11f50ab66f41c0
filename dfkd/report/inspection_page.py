"""A selection -> its page: what became of the pool, scores, classes, filter, a gallery, and methods to try."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from dfkd.data import Pool
from dfkd.report.charts import bar, figure, histogram
from dfkd.report.contents import QUANTILES, SCORES, Contents, facts_of, left_out, quantiles
from dfkd.report.explore import MOST, explorer
from dfkd.report.filter_picture import filter_section
from dfkd.report.gallery import (
    FAR,
    GALLERY_NOTE,
    NEAREST,
    before_and_after,
    gallery,
    left_out_images,
    pool_rows,
)
from dfkd.report.markup import Html, definitions, section, table, tag, write_page
from dfkd.select.choose import NEAR_DUPLICATE, NOT_DRAWN, REASONS, SELECTED


def write(path: Path, folder: str, contents: Contents, pool: Pool | None = None) -> None:
    """Write the page; with the pool, its images too."""
    manifest, counts = contents.shards.manifest, contents.per_class
    reasons = manifest.reasons
    total = sum(reasons.values())
    of_pool = _pool_classes(contents)
    body = [
        [
            k,
            tag("td", bar(counts[k] / max(counts)), class_="bar"),
            f"{counts[k]:,}",
            f"{counts[k] / sum(counts):.1%}",
            *(f"{column[k]:,}" for column in of_pool.values()),
        ]
        for k in contents.shown_classes
    ]
    capped = tag("p", left_out(contents), class_="note") if left_out(contents) else Html()
    write_page(
        path,
        f"Selection {Path(folder).resolve().name}",
        definitions(facts_of(contents)),
        section(
            "What became of the pool",
            table(
                "Pool images by reason",
                ["reason", "images", "share"],
                [[reason, f"{n:,}", f"{n / total:.1%}"] for reason, n in reasons.items()],
            ),
        )
        if total
        else Html(),
        section("Scores", _histograms(contents), table("Quantiles", ["scores", *QUANTILES], quantiles(contents))),
        section(
            "Predicted classes",
            capped,
            table(
                "Images of every class, by the teacher's prediction",
                ["class", "bar", "images", "share", *of_pool],
                body,
            ),
        ),
        filter_section(manifest, None if pool is None else before_and_after(contents, pool)),
        Html() if contents.scored is None else explorer(contents.scored, manifest, _shown_rows(contents)),
        section("Gallery", tag("p", GALLERY_NOTE, class_="note"), *gallery(contents)),
        _left_out_section(contents, pool),
        scripts=("explore.js",),
    )


def _pool_classes(contents: Contents) -> dict[str, list[int]]:
    """Of every class, how many pool images and how many admitted ones there are: the classes before balance."""
    scored = contents.scored
    if scored is None:
        return {}
    admitted = np.isin(scored.reason, [REASONS.index(reason) for reason in (SELECTED, NOT_DRAWN, NEAR_DUPLICATE)])
    classes = contents.shards.manifest.classes
    return {
        "admitted": np.bincount(scored.prediction[admitted], minlength=classes).tolist(),
        "pool": np.bincount(scored.prediction, minlength=classes).tolist(),
    }


def _shown_rows(contents: Contents) -> Int[np.ndarray, " images"]:
    """Pool images that the gallery may show."""
    places = pool_rows(contents)
    return np.array([], dtype=np.int64) if places is None or len(places) > MOST else places


def _left_out_section(contents: Contents, pool: Pool | None) -> Html:
    if contents.scored is None:
        return Html()
    if pool is None:
        hint = "dfkd inspect SELECTION --out FILE.html --pool POOL shows the images that are not in the selection."
        return section("Images that are out", tag("p", hint, class_="note"))
    note = f"First the {NEAREST} that are nearly in, by the score of the method, then {FAR} spread over the others."
    return section("Images that are out", tag("p", note, class_="note"), *left_out_images(contents, pool))


def _histograms(contents: Contents) -> Html:
    charts = []
    threshold = contents.shards.manifest.threshold
    for score in SCORES:
        selected = _counts(contents.selected[score])
        pool = _counts(contents.pool[score]) if contents.pool else [0] * len(selected)
        mark = ("threshold", threshold) if score == "confidence" and threshold is not None else None
        drawn = histogram(f"Histogram of {score}", ("pool", pool), ("selected", selected), mark)
        charts.append(
            figure(f"{score.capitalize()}. Wide bars: the pool; narrow bars: selected; shares of each.", drawn)
        )
    return tag("div", *charts, class_="charts")


def _counts(values: Float[np.ndarray, " images"]) -> list[int]:
    return np.histogram(values, bins=20, range=(0, 1))[0].tolist()
