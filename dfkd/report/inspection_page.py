"""The HTML page of a selection: reasons, scores, classes, filter, gallery, and methods to try."""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from dfkd.data import Pool
from dfkd.report.charts import bar, figure, histogram
from dfkd.report.contents import QUANTILES, SCORES, Contents, facts_of, left_out, quantiles
from dfkd.report.embedding import embedding
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
from dfkd.report.kept_answers import KeptAnswers, kept_answers
from dfkd.report.making import making_section
from dfkd.report.markup import Html, definitions, join, section, table, tag, write_page
from dfkd.report.near_groups import groups_shown, near_groups
from dfkd.report.pool_scores import ScoredPool
from dfkd.select.choose import NEAR_DUPLICATE, NOT_DRAWN, SELECTED
from dfkd.system.console import say
from dfkd.system.errors import RequestError


def write(path: Path, folder: str, contents: Contents, pool: Pool | None = None) -> None:
    """Write the page. With `pool`, the page shows images that are not selected, too."""
    manifest, counts = contents.shards.manifest, contents.per_class
    reasons = manifest.reasons
    total = sum(reasons.values())
    of_pool = _pool_classes(contents)
    body = [
        [
            contents.named(k),
            bar(counts[k] / max(counts)),
            f"{counts[k]:,}",
            f"{counts[k] / sum(counts):.1%}",
            *(f"{column[k]:,}" for column in of_pool.values()),
        ]
        for k in contents.shown_classes
    ]
    answers = None if contents.scored is None else kept_answers(contents.shards, contents.scored)
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
        if total > len(contents.shards)
        else Html(),
        section("Scores", _histograms(contents), table("Quantiles", ["scores", *QUANTILES], quantiles(contents))),
        section(
            "Predicted classes",
            capped,
            table(
                "Images of every class, by the teacher's prediction",
                ["class", "", "images", "share", *of_pool],
                body,
            ),
        ),
        filter_section(manifest, None if pool is None else before_and_after(contents, pool)),
        making_section(contents),
        _explorer(contents, answers),
        section("Gallery", tag("p", GALLERY_NOTE, class_="note"), *gallery(contents)),
        _left_out_section(contents, pool, answers),
        scripts=("explore.js",),
    )


def _pool_classes(contents: Contents) -> dict[str, list[int]]:
    """Return the number of pool images and of admitted images by class, before balance."""
    scored = contents.scored
    if scored is None or contents.pool is None:
        return {}
    admitted = scored.of(SELECTED, NOT_DRAWN, NEAR_DUPLICATE)
    classes = contents.shards.manifest.classes
    return {
        "admitted": np.bincount(scored.prediction[admitted], minlength=classes).tolist(),
        "pool": np.bincount(scored.prediction, minlength=classes).tolist(),
    }


def _shown_rows(contents: Contents) -> Int[np.ndarray, " images"]:
    """Return the pool rows of the images that the gallery may show."""
    places = pool_rows(contents)
    return np.array([], dtype=np.int64) if places is None or len(places) > MOST else places


def _explorer(contents: Contents, answers: KeptAnswers | None) -> Html:
    if contents.scored is None:
        return Html()
    embed = partial(embedding, answers) if answers is not None else lambda rows: None
    return explorer(contents.scored, contents.shards.manifest, _shown_rows(contents), embed)


def _left_out_section(contents: Contents, pool: Pool | None, answers: KeptAnswers | None) -> Html:
    if contents.scored is None or contents.shards.manifest.source != "selection":
        return Html()
    if pool is None:
        hint = "dfkd inspect SELECTION --out FILE.html --pool POOL shows the images that are not in the selection."
        return section("Images that are out", tag("p", hint, class_="note"))
    note = f"First the {NEAREST} images closest to being selected, then {FAR} evenly spaced among the others."
    return section(
        "Images that are out",
        tag("p", note, class_="note"),
        *left_out_images(contents, pool),
        _near_duplicates(contents, contents.scored, pool, answers),
    )


def _near_duplicates(contents: Contents, scored: ScoredPool, pool: Pool, answers: KeptAnswers | None) -> Html:
    """Return the largest groups of near-duplicates. The result is empty if there are none."""
    least = contents.shards.manifest.content.options.table.get("deduplicate")
    if not isinstance(least, float) or len(scored.of(NEAR_DUPLICATE)) == 0:
        return Html()
    heading = tag("h3", "Groups of near-duplicates")
    if answers is None or answers.kind != "features":
        words = "The teacher's features are not in the cache. The same dfkd select command stores them again."
        return join((heading, tag("p", words, class_="note")))
    note = f"The largest groups. The cosine of the features is {least:g} or more (--deduplicate)."
    try:
        groups = groups_shown(scored, near_groups(scored, answers, least), pool)
    except RequestError as error:
        say(f"note: near-duplicates are not grouped: {error}")
        return Html()
    return join((heading, tag("p", note, class_="note"), groups))


def _histograms(contents: Contents) -> Html:
    charts = []
    threshold = contents.shards.manifest.threshold
    for score in SCORES:
        selected = _counts(contents.selected[score])
        pool = _counts(contents.pool[score]) if contents.pool else [0] * len(selected)
        mark = ("threshold", threshold) if score == "confidence" and threshold is not None else None
        drawn = histogram(f"Histogram of {score}", ("pool", pool), ("selected", selected), mark)
        words = (
            "Wide bars: the pool; narrow bars: selected; shares of each." if contents.pool else "Shares of the images."
        )
        charts.append(figure(f"{score.capitalize()}. {words}", drawn))
    return tag("div", *charts, class_="charts")


def _counts(values: Float[np.ndarray, " images"]) -> list[int]:
    return np.histogram(values, bins=20, range=(0, 1))[0].tolist()
