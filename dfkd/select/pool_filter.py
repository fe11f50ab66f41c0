"""The filter that `--filter` names, applied to a pool. It is found once for a teacher and a pool, and cached."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from dfkd.data import Pool
from dfkd.data.images.filter import Filter, read_filter
from dfkd.data.images.filter_record import read_scores
from dfkd.data.images.frame import ENCODED_ABOVE
from dfkd.models.classifier import Classifier
from dfkd.models.features.bn_statistics import BatchStatistics
from dfkd.models.features.image_distance import ImageDistances
from dfkd.models.load import Model
from dfkd.select import filters
from dfkd.system import names
from dfkd.system.checksums import sealed, unsealed
from dfkd.system.components import Component, Kind
from dfkd.system.console import say
from dfkd.system.device import Place
from dfkd.system.errors import RequestError
from dfkd.system.files import request_folder, write_json
from dfkd.system.portable import portable

FILTER = Kind("filter", (filters.__name__,), given=("teacher", "pixels"), failure="failed")
FORMAT = 1
"""Version of the filters of `dfkd`. A filter that another version found is not used."""
IMAGES = 2048
"""Images of the pool with which a filter is found: half for the filter's function, half to measure the result."""
LEAST = 512
"""Smallest pool for which a filter is fitted by default. With fewer images, statistics are unreliable."""
SEARCHED, NEAREST = 4 * IMAGES, 0.1
"""Images of the pool that are searched, and the nearest share of them, for methods that select by distance.

Neither number depends on `--count`.
"""


@dataclass(frozen=True)
class NamedFilter:
    """A filter with all its options. `automatic` tells that the user did not name it."""

    component: Component
    automatic: bool

    def describe(self) -> dict[str, Any]:
        """Return the filter's part of a selection's content."""
        return {"filter": portable(self.component.text), "filter_code": self.component.code or FORMAT}


@dataclass(frozen=True)
class Adapted:
    """A filter, None if not kept, and the teacher's Inception Score of some images without and with the filter."""

    filter: Filter | None
    before: float
    after: float

    def describe(self) -> dict[str, Any]:
        """Return filter and scores as JSON values."""
        scores = {"inception_score": [self.before, self.after]}
        return scores | (self.filter.describe() if self.filter else {})


def parse_filter(text: str, model: Model, pool: Pool) -> NamedFilter | None:
    """Parse `--filter`; None for no filter. Raises: RequestError for an invalid filter."""
    named = names.parse(text)
    automatic, none = (named.name.lower() == word for word in ("auto", "none"))
    if (automatic or none) and (named.options or named.numbers):
        raise RequestError(f"--filter {text}: {named.name} has no parameters")
    if automatic:
        can, few = pool.image_size <= ENCODED_ABOVE and BatchStatistics(model.module).layers, len(pool) < LEAST
        text, none = "fitted", few or not can
        if few and can:
            say(f"filter none: the pool has {len(pool):,} images, and {LEAST} are needed to fit one")
    if none:
        return None
    try:
        component = FILTER.look_up(text)
    except RequestError as error:
        raise RequestError(f"{error}; or none") from None
    return NamedFilter(component.checked(), automatic)


def adapt(
    filter: NamedFilter,
    model: Model,
    place: Place,
    pool: Pool,
    scoring: Mapping[str, Any],
    nearest: bool,
) -> Adapted | None:
    """Return the filter, cached or newly found; None if an automatic filter cannot be found.

    `scoring` is everything that decides the scores of the unfiltered pool. With `nearest`, the filter is found for the
    tenth of the images nearest to the statistics of the teacher's BatchNorm layers. In a pool of mostly unrelated
    images, those would otherwise decide the filter.

    Raises: RequestError if fewer than two images of the pool can be read, or if the filter itself raises one.
    """
    request = {**scoring, **filter.describe(), "images": IMAGES, **({"nearest": NEAREST} if nearest else {})}
    file = request_folder("filters", request) / "filter.json"
    found = _read(file, model.channels)
    if found is None:
        try:
            found = find(filter, Classifier(model, place), pool, nearest)
        except RequestError as error:
            if not filter.automatic:
                raise
            say(f"the images are not filtered: {error}")
            return None
        # machines that find the filter at the same time differ in rounding: all use the first result
        write_json(file, sealed(found.describe()), first=True)
        found = _read(file, model.channels) or found
    scores = f"the teacher's Inception Score of the pool is {found.before:.2f}, and {found.after:.2f} filtered"
    say(f"filter {filter.component.text}: {scores}{'' if found.filter else '; not kept'}")
    return found


def find(filter: NamedFilter, teacher: Classifier, pool: Pool, nearest: bool = False) -> Adapted:
    """Find the filter, and measure whether to keep it. Raises: RequestError as `adapt` does."""
    component, what = filter.component, f"filter {filter.component.text}"
    drawn = np.random.default_rng(0).choice(len(pool), min(SEARCHED if nearest else IMAGES, len(pool)), replace=False)
    images = pool.images(np.sort(drawn))
    readable = images.readable
    if nearest:
        readable = _nearest(teacher, readable, min(IMAGES, max(LEAST, round(NEAREST * len(readable)))))
    if len(readable) < 2:
        raise RequestError(f"{what} needs at least 2 readable images of the pool; give --filter none")
    shown, held = readable[::2], readable[1::2]
    found: Any = component.build(teacher=teacher, pixels=torch.from_numpy(shown))
    if not isinstance(found, Filter):
        raise RequestError(f"{what} gives a {type(found).__name__}, not a dfkd.data.images.filter.Filter")
    try:
        found = read_filter(found.describe(), pool.channels)  # the values that every later reader will get
    except ValueError as error:
        raise RequestError(f"{what} cannot be used: {error}") from None
    assert found is not None
    before, after = (_score(teacher, pixels) for pixels in (held, found(held)))
    rise = filters.Traits.of(component.target).rise
    keep = rise is None or after >= rise * before
    return Adapted(found if keep else None, before, after)


def _nearest(
    teacher: Classifier, pixels: UInt8[np.ndarray, "images height width channels"], count: int
) -> UInt8[np.ndarray, "nearest height width channels"]:
    """Return the `count` images nearest to the teacher's statistics, in their original order."""
    distances = ImageDistances(teacher.network)
    found = []
    for part in torch.from_numpy(pixels).split(256):
        with distances.watched():
            teacher(part)
        found.append(distances.take(len(part)).cpu())
    return pixels[np.sort(torch.cat(found).argsort(stable=True)[:count].numpy())]


def _score(teacher: Classifier, pixels: UInt8[np.ndarray, "images height width channels"]) -> float:
    logits = [teacher(part).logits.cpu() for part in torch.from_numpy(pixels).split(256)]
    return filters.inception_score(torch.cat(logits))


def _read(file: Path, channels: int) -> Adapted | None:
    """Return what an earlier command found; None if there is nothing. A damaged file is deleted."""
    if not file.exists():
        return None
    try:
        stored = unsealed(json.loads(file.read_text(encoding="utf-8")))
        return Adapted(read_filter(stored, channels), *read_scores(stored))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        file.unlink(missing_ok=True)
        return None
