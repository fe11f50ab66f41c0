"""Groups of near-duplicates: an image that was kept, with those that were left out for it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dfkd.data import Pool
from dfkd.report.gallery import image_tag
from dfkd.report.kept_answers import KeptAnswers
from dfkd.report.markup import Html, join, tag
from dfkd.report.pool_scores import ScoredPool
from dfkd.select.choose import NEAR_DUPLICATE, NOT_DRAWN, SELECTED
from dfkd.select.diversity import unit_rows
from dfkd.system.spacing import evenly_spaced

GROUPS, SHOWN = 8, 7
"""Groups that are shown, the largest ones, and images of each beside the one that was kept."""
LOOKED_UP, PAIRS = 512, 50_000_000
"""Near-duplicates whose kept image is looked up, and the most comparisons that this may take."""
ROUNDING = 1e-3
"""Of a cosine of float16 features."""


@dataclass(frozen=True)
class Group:
    """Positions in a pool's scores: the image that was kept, and the others, the most similar first."""

    kept: int
    others: Int[np.ndarray, " others"]
    similarity: Float[np.ndarray, " others"]
    """Cosine of the features of each with the kept image's."""


def near_groups(scored: ScoredPool, answers: KeptAnswers, similarity: float) -> list[Group]:
    """The largest groups. Of a large pool those that a sample of the near-duplicates leads to."""
    kept, out = scored.of(SELECTED, NOT_DRAWN), scored.of(NEAR_DUPLICATE)
    if len(kept) == 0 or len(out) == 0:
        return []
    most = min(len(out), LOOKED_UP, max(32, PAIRS // len(kept)))
    sample = out[evenly_spaced(len(out), most)]
    nearest, cosine = _nearest(answers, scored.row[sample], scored.row[kept])
    found = Counter(nearest[cosine >= similarity - ROUNDING].tolist())
    leaders = kept[sorted(position for position, _ in found.most_common(GROUPS))]
    if len(leaders) == 0:
        return []
    nearest, cosine = _nearest(answers, scored.row[out], scored.row[leaders])
    groups = []
    for position, leader in enumerate(leaders.tolist()):
        mine = np.flatnonzero((nearest == position) & (cosine >= similarity - ROUNDING))
        mine = mine[np.argsort(-cosine[mine], kind="stable")]
        groups.append(Group(leader, out[mine], cosine[mine]))
    return sorted((group for group in groups if len(group.others)), key=lambda group: -len(group.others))


def _nearest(
    answers: KeptAnswers, rows: Int[np.ndarray, " rows"], among: Int[np.ndarray, " among"]
) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """For each pool row the position of the most similar one of the others, with the cosine of their features."""
    ours = unit_rows(np.concatenate([*answers.read(rows)]))
    best, cosine, start = np.zeros(len(rows), np.int64), np.full(len(rows), -2, np.float32), 0
    for part in answers.read(among):
        similar = ours @ unit_rows(part).T
        here = similar.argmax(axis=1)
        value = similar[np.arange(len(rows)), here]
        best, cosine = np.where(value > cosine, start + here, best), np.maximum(cosine, value)
        start += len(part)
    return best, cosine


def groups_shown(scored: ScoredPool, groups: Sequence[Group], pool: Pool) -> Html:
    """The images of the groups: first the kept one, then the others."""
    shown = [np.array([group.kept, *group.others[:SHOWN].tolist()]) for group in groups]
    rows = np.unique(scored.row[np.concatenate(shown)]) if shown else np.array([], np.int64)
    images, origins = pool.images(rows), pool.origins(rows)
    parts = []
    for group, positions in zip(groups, shown, strict=True):
        items = []
        for position, similarity in zip(positions, [None, *group.similarity.tolist()], strict=False):
            place = int(np.searchsorted(rows, scored.row[position]))
            words = "kept" if similarity is None else f"cosine {similarity:.3f}"
            words += f", confidence {scored.confidence[position]:.2f}"
            if place not in images.problems:
                alt = f"{words}: {origins[place]}"
                shot = image_tag(images.pixels[place], not pool.encoded, alt, origins[place], int(rows[place]))
                items.append(tag("li", tag("figure", shot, tag("figcaption", words))))
        more = f", {SHOWN} of them shown" if len(group.others) > SHOWN else ""
        count = len(group.others)
        parts.append(tag("h4", f"One image and {count:,} near-duplicate{'s' if count > 1 else ''} of it{more}"))
        parts.append(tag("ul", *items, class_="gallery"))
    return join(parts)
