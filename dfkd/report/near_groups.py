"""Groups of near-duplicates: a kept image, and the images that were left out because of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dfkd.data import Pool
from dfkd.report.image_tags import gallery_item, image_tag
from dfkd.report.kept_answers import KeptAnswers
from dfkd.report.markup import Html, join, tag
from dfkd.report.pool_scores import ScoredPool
from dfkd.select.choose import NEAR_DUPLICATE, NOT_DRAWN, SELECTED
from dfkd.select.diversity import unit_rows
from dfkd.system.spacing import evenly_spaced
from dfkd.system.text import counted

GROUPS, SHOWN = 8, 7
"""Number of groups that are shown, the largest first, and of images per group beside the kept one."""
LOOKED_UP, PAIRS = 512, 50_000_000
"""Number of near-duplicates whose kept image is looked up, and largest number of comparisons for this."""
ROUNDING = 1e-3
"""Rounding error of a cosine of float16 features."""


@dataclass(frozen=True)
class Group:
    """Positions in a pool's scores: the kept image, and its near-duplicates, the most similar first."""

    kept: int
    others: Int[np.ndarray, " others"]
    similarity: Float[np.ndarray, " others"]
    """Cosine similarity of each near-duplicate with the kept image, by their features."""


def near_groups(scored: ScoredPool, answers: KeptAnswers, similarity: float) -> list[Group]:
    """Return the largest groups.

    In a large pool, only groups that a sample of the near-duplicates leads to are found.
    """
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
    """Return the position of the most similar row of `among` for each pool row, and the cosine of their features."""
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
    """Return the images of the groups, the kept image of each first."""
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
                items.append(gallery_item(shot, words))
        more = f", {SHOWN} of them shown" if len(group.others) > SHOWN else ""
        count = len(group.others)
        parts.append(tag("h4", f"One image and {counted(count, 'near-duplicate')} of it{more}"))
        parts.append(tag("ul", *items, class_="gallery"))
    return join(parts)
