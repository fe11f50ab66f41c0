"""Content of a selection, as values and as aligned text."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from dfkd.data.images.filter_record import read_scores
from dfkd.formats.shards import Shards
from dfkd.report.pool_scores import ScoredPool, read_pool_scores
from dfkd.system.errors import RequestError
from dfkd.system.text import aligned, class_name, counted, visible

QUANTILES = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}
SHOWN_CLASSES = 20
"""Number of classes whose bars and images are shown. A page of a thousand classes could not be read."""
SCORES = ("confidence", "entropy")


@dataclass(frozen=True)
class Contents:
    """Scores and predictions of a selection's images, and the scores of its pool (None without a pool)."""

    shards: Shards
    selected: Mapping[str, Float[np.ndarray, " images"]]
    scored: ScoredPool | None
    prediction: Int[np.ndarray, " images"]
    kept: Bool[np.ndarray, "images classes"]

    @property
    def pool(self) -> Mapping[str, Float[np.ndarray, " pool"]] | None:
        """Confidence and entropy of the pool's images. None without a pool, and if all of its images are selected."""
        return None if self.scored is None or self.scored.images == len(self.shards) else self.scored.table()

    @property
    def per_class(self) -> list[int]:
        """Number of images of each predicted class."""
        return np.bincount(self.prediction, minlength=self.kept.shape[1]).tolist()

    def named(self, number: int) -> str:
        """Return a class's number and, if known, its name."""
        return class_name(number, self.shards.manifest.class_names)

    @property
    def shown_classes(self) -> list[int]:
        """Classes with the most images, in ascending order."""
        counts = self.per_class
        return sorted(sorted(range(len(counts)), key=lambda k: -counts[k])[:SHOWN_CLASSES])


def read(folder: Path) -> Contents:
    """Open a selection and read its scores. Raises: RequestError if the folder is not a selection, or is empty."""
    shards = Shards(folder)
    if len(shards) == 0:
        raise RequestError(f"{folder} holds no image; make the selection again")
    prediction, classes = shards.column("prediction"), shards.manifest.classes
    if not 0 <= prediction.min() <= prediction.max() < classes:
        raise RequestError(f"{folder} holds predictions outside its {classes} classes; make the selection again")
    return Contents(
        shards,
        {name: shards.column(name) for name in SCORES},
        read_pool_scores(folder / "scores.parquet", shards.manifest),
        prediction,
        shards.column("kept_classes"),
    )


def terminal_text(contents: Contents) -> str:
    """Return all but the gallery, as aligned text."""
    manifest = contents.shards.manifest
    facts = facts_of(contents)
    width = max(len(name) for name, _ in facts) + 2
    counts = contents.per_class
    bars = [
        [visible(contents.named(k)), f"{counts[k]:,}", "#" * round(30 * counts[k] / max(counts))]
        for k in contents.shown_classes
    ]
    reasons = [[reason, f"{n:,}"] for reason, n in manifest.reasons.items()]
    parts = [
        "\n".join(f"{name + ':':<{width}}{visible(value)}" for name, value in facts),
        aligned(["reason", "pool images"], reasons) if reasons else "",
        aligned(["scores", *QUANTILES], quantiles(contents)),
        aligned(["class", "images", ""], bars, left=(0, 2)),
        left_out(contents),
    ]
    return "\n\n".join(filter(None, parts))


def facts_of(contents: Contents) -> list[tuple[str, str]]:
    """Return the facts of a selection, as pairs of name and text."""
    manifest = contents.shards.manifest
    threshold, kept = manifest.threshold, contents.kept.sum(axis=1)
    image, kind = manifest.image, "encoded files" if contents.shards.encoded else "raw"
    options = manifest.content.options.table
    facts = [
        ("images", f"{len(contents.shards):,}"),
        ("image", f"{image.size} x {image.size} pixels, {counted(image.channels, 'channel')}, {kind}"),
        ("teacher", manifest.teacher),
        ("options", ", ".join(f"{name} {v}" for name, v in options.items() if v is not None)),
        ("seed", str(manifest.content.seed)),
    ]
    if manifest.filter:
        before, after = read_scores(manifest.filter)
        unused = "" if "kernel" in manifest.filter else "; not kept"
        facts.append(
            ("filter", f"the teacher's Inception Score of the pool: {before:.2f}, {after:.2f} with it{unused}")
        )
    if threshold is not None:
        facts.append(("threshold", f"confidence at least {threshold:.4f}; it admits {manifest.admitted:,} images"))
    if manifest.unreadable:
        facts.append(("unreadable", f"{len(manifest.unreadable):,} pool images; the manifest names them"))
    if manifest.left_out:
        total = sum(sum(counts.values()) for counts in manifest.left_out.values())
        facts.append(("left out", f"{total:,} files that are no images; the manifest counts them by suffix"))
    facts.append(("kept classes", f"{kept.mean():.2f} of {contents.kept.shape[1]} per image on average"))
    return facts


def quantiles(contents: Contents) -> list[list[str]]:
    """Return the rows of a table: the quantiles of each score, of the selection and of the pool."""
    sets = [("selected", contents.selected), *([("pool", contents.pool)] if contents.pool else [])]
    return [
        [f"{score}, {name}", *(f"{value:.3f}" for value in np.quantile(scores[score], [*QUANTILES.values()]))]
        for score in SCORES
        for name, scores in sets
    ]


def left_out(contents: Contents) -> str:
    """Return a sentence about the classes that are not shown. It is empty if all are shown."""
    counts = contents.per_class
    empty = f"; {counts.count(0):,} have none" if 0 in counts else ""
    if len(counts) <= SHOWN_CLASSES:
        return ""
    return f"The {SHOWN_CLASSES} classes with the most images are shown, of {len(counts):,}{empty}."
