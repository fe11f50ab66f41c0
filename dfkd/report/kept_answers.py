"""The teacher's stored outputs for a pool: features if the selection kept them, else logits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from dfkd.formats.manifest import Manifest
from dfkd.formats.shards import Shards
from dfkd.report.pool_scores import ScoredPool
from dfkd.select.choose import SELECTED
from dfkd.select.stored_scores import PoolScores, features_file, parts_of, scores_file
from dfkd.system.files import cached_folder

AT_ONCE = 16_384
"""Images whose outputs are read at a time."""


@dataclass(frozen=True)
class KeptAnswers:
    """The teacher's features or logits for images of a pool, from the cache or from a selection's shards."""

    shards: Shards
    scored: ScoredPool
    cached: PoolScores | None
    """Scores and outputs in the cache. None if the cache does not have them."""
    kind: Literal["features", "logits"]

    def knows(self, rows: Int[np.ndarray, " some"]) -> Bool[np.ndarray, " some"]:
        """Return a mask of the pool rows whose outputs are stored."""
        return np.ones(len(rows), bool) if self.cached is not None else np.isin(rows, self._selected)

    def read(self, rows: Int[np.ndarray, " some"]) -> Iterator[Float[np.ndarray, "part width"]]:
        """Yield the outputs of sorted pool rows in parts, with 0 for values that are not finite.

        All rows must be stored.
        """
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            if self.cached is None:
                values = self.shards.column("logits", np.searchsorted(self._selected, some))
            else:
                values = self.cached.features(some) if self.kind == "features" else self.cached.logits(some)
            yield np.nan_to_num(values.astype(np.float32), nan=0, posinf=0, neginf=0)

    @property
    def _selected(self) -> Int[np.ndarray, " selected"]:
        return self.scored.row[self.scored.of(SELECTED)]


def kept_answers(shards: Shards, scored: ScoredPool) -> KeptAnswers | None:
    """Return the outputs that are still stored. None if not even the shards match the pool's scores."""
    features = shards.manifest.content.options.table.get("features")
    folder = cached_folder("scores", _scoring(shards.manifest))
    parts = range(parts_of(scored.images))
    if isinstance(features, str) and all(features_file(folder, n, features).exists() for n in parts):
        return KeptAnswers(shards, scored, PoolScores(folder, features, scored.images, {}), "features")
    if all(scores_file(folder, n).exists() for n in parts):
        return KeptAnswers(shards, scored, PoolScores(folder, None, scored.images, {}), "logits")
    found = KeptAnswers(shards, scored, None, "logits")
    return found if len(found._selected) == len(shards) else None


def _scoring(manifest: Manifest) -> Mapping[str, Any]:
    """Return what decided the scores of a pool, which is the key of the cache."""
    content = {name: part for name, part in manifest.content.table.items() if name not in ("options", "seed")}
    if "kernel" in manifest.filter:
        content["filter"] = {name: value for name, value in manifest.filter.items() if name != "inception_score"}
    return content
