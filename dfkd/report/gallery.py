"""Images of a page: selected images by class, and images that are not selected by reason."""

import numpy as np
from jaxtyping import Bool, Int

from dfkd.data import Pool
from dfkd.report.contents import SCORES, Contents
from dfkd.report.image_tags import gallery_item, image_tag
from dfkd.report.markup import Html, tag
from dfkd.report.pool_scores import ScoredPool
from dfkd.select.choose import NEAR_DUPLICATE, NON_FINITE, NOT_ADMITTED, NOT_DRAWN, SELECTED
from dfkd.system.spacing import evenly_spaced
from dfkd.system.text import counted

IMAGES_A_CLASS = 12
GALLERY_NOTE = (
    f"Up to {IMAGES_A_CLASS} images of a class, from the least to the most confident. Below each: the teacher's "
    "confidence, the entropy of its prediction (0: sure of one class, 1: all alike), and the classes that are kept."
)
OUT = {
    NOT_DRAWN: "Admitted and not drawn",
    NEAR_DUPLICATE: "Near-duplicates of better images",
    NOT_ADMITTED: "Not admitted",
    NON_FINITE: "The teacher gives no finite answer",
}
"""Heading for each reason why a readable image is not selected."""
FILTERED = 8
"""Images shown before and after the filter."""
NEAREST = FAR = 12
"""Images shown per reason: those closest to being selected, and some of the others."""


def pool_rows(contents: Contents) -> Int[np.ndarray, " images"] | None:
    """Return the pool rows of the selected images, which are in the pool's order. None without a pool."""
    scored = contents.scored
    if scored is None:
        return None
    rows = scored.row[scored.of(SELECTED)]
    return rows if len(rows) == len(contents.shards) else None


def gallery(contents: Contents) -> list[Html]:
    """Return the images of each shown class, spread evenly over the range of confidence."""
    parts = []
    confidence, entropy = (contents.selected[name] for name in SCORES)
    origins = contents.shards.column("source")
    raw = not contents.shards.encoded
    places = pool_rows(contents)
    for k in contents.shown_classes:
        rows = np.flatnonzero(contents.prediction == k)
        if len(rows) == 0:
            continue
        rows = rows[np.argsort(confidence[rows], kind="stable")]
        picked = rows[evenly_spaced(len(rows), IMAGES_A_CLASS)]
        items = []
        for row, pixels in zip(picked, contents.shards.pixels(picked), strict=True):
            scores = f"{confidence[row]:.2f}, entropy {entropy[row]:.2f}"
            alt = f"predicted {contents.named(k)} with confidence {scores}: {origins[row]}"
            place = None if places is None else int(places[row])
            picture = image_tag(pixels, raw, alt, str(origins[row]), place)
            items.append(gallery_item(picture, f"{scores}, keeps {_kept(contents.kept[row])}"))
        heading = tag("h3", f"Class {contents.named(k)}, {counted(len(rows), 'image')}")
        parts += [heading, tag("ul", *items, class_="gallery")]
    return parts


def _kept(mask: Bool[np.ndarray, " classes"], most: int = 6) -> str:
    kept = np.flatnonzero(mask).tolist()
    return "all" if len(kept) == len(mask) else ", ".join(map(str, kept[:most])) + (" ..." if len(kept) > most else "")


def left_out_images(contents: Contents, pool: Pool) -> list[Html]:
    """Return, for each reason, the images closest to being selected by the method's score, and some of the others."""
    scored = contents.scored
    assert scored is not None
    parts = []
    for reason, heading in OUT.items():
        rows = scored.of(reason)
        if len(rows) == 0:
            continue
        rows = rows[np.argsort(_rank(contents, scored)[rows], kind="stable")]
        others = rows[NEAREST:]
        spread = evenly_spaced(len(others), FAR)
        shown = np.concatenate([rows[:NEAREST], others[spread]])
        order = np.argsort(scored.row[shown])  # a pool is read in ascending order
        images = pool.images(scored.row[shown[order]])
        origins = pool.origins(scored.row[shown[order]])
        items = [Html()] * len(shown)
        for position, place in enumerate(order):
            row = shown[place]
            words = f"{scored.confidence[row]:.2f}, entropy {scored.entropy[row]:.2f}"
            words += "" if scored.distance is None else f", distance {scored.distance[row]:.3g}"
            predicted = contents.named(int(scored.prediction[row]))
            alt = f"predicted {predicted} with confidence {words}: {origins[position]}"
            if position in images.problems:
                continue
            picture = image_tag(images.pixels[position], not pool.encoded, alt, origins[position], int(scored.row[row]))
            items[place] = gallery_item(picture, f"{words}, class {predicted}")
        parts.append(tag("h3", f"{heading}, {len(rows):,} images"))
        parts.append(tag("ul", *items, class_="gallery"))
    return parts


def before_and_after(contents: Contents, pool: Pool) -> Html:
    """Return selected images as they are in the pool, above the same images after the filter."""
    manifest = contents.shards.manifest
    places = pool_rows(contents)
    if places is None or "kernel" not in manifest.filter:
        return Html()
    from dfkd.data.images.filter import read_filter  # imports torch, which no other part of the page needs

    kernel = read_filter(manifest.filter, manifest.image.channels)
    assert kernel is not None
    picked = evenly_spaced(len(places), FILTERED)
    before = pool.images(places[picked]).pixels
    raw = not pool.encoded
    pairs = zip(before, kernel(before), strict=True)
    items = (
        tag(
            "li",
            *(image_tag(p, raw, f"{what} the filter", what) for what, p in zip(("before", "after"), pair, strict=True)),
        )
        for pair in pairs
    )
    note = tag("p", "Images before the filter, each above the same image after it.", class_="note")
    return tag("div", note, tag("ul", *items, class_="gallery"))


def _rank(contents: Contents, scored: ScoredPool) -> np.ndarray:
    """Return the score that the method reads. A lower value is closer to being selected."""
    method = contents.shards.manifest.content.options.method.partition(":")[0]
    if method == "statistics" and scored.distance is not None:
        return scored.distance
    return -scored.entropy if method == "entropy" else -scored.confidence
