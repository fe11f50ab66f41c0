"""Pool -> the same pool through the filter that `--filter` asks for, found once for a teacher and a pool."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from dfkd import names
from dfkd.console import say
from dfkd.data import Pool
from dfkd.data.filter import Filter, read_filter
from dfkd.data.pool import ENCODED_ABOVE
from dfkd.device import Place
from dfkd.errors import RequestError
from dfkd.files import request_folder, write_json
from dfkd.models.load import Model
from dfkd.portable import portable
from dfkd.select.filters import inception_score
from dfkd.statistics import BatchStatistics
from dfkd.teacher import Classifier

FILTERS = ["dfkd.select.filters"]
KIND = "filter"
IMAGES = 2048
"""Images of the pool that a filter is found with: one half shows it to the filter, the other measures it."""
LEAST = 512
"""Images of a pool from which on a filter is fitted unasked: of fewer, statistics say little."""
RISE = 1.05
"""By so much the teacher's Inception Score must rise for a fitted filter to be kept."""


@dataclass(frozen=True)
class Adapted:
    """A filter, None where it was not kept, and the teacher's Inception Score of some images without and with it."""

    filter: Filter | None
    before: float
    after: float

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        scores = {"inception_score": [self.before, self.after]}
        return scores | (self.filter.describe() if self.filter else {})


def asked(text: str | None, model: Model, pool: Pool) -> names.Named | None:
    """The parsed `--filter`, or what it is where nobody says. Raises: RequestError for one that cannot be."""
    if text is None:
        can = pool.image_size <= ENCODED_ABOVE and len(pool) >= LEAST and BatchStatistics(model.module).layers
        text = "fitted" if can else "none"
    named = names.parse(text)
    if named.name == "none" and not named.options and not named.numbers:
        return None
    target = names.find(named.name, FILTERS, KIND)
    names.check_options(target, named, KIND, {"teacher": None, "pixels": None})
    return named


def describe(named: names.Named) -> dict[str, str]:
    """What of a filter decides a selection."""
    code = names.code_of(names.find(named.name, FILTERS, KIND))
    return {"filter": portable(str(named)), **({"filter_code": code} if code else {})}


def adapt(named: names.Named, model: Model, place: Place, pool: Pool, scoring: Mapping[str, Any]) -> Adapted:
    """The filter, from the cache or found anew. `scoring` is what decides the scores of the pool without one.

    Raises: RequestError for a pool of which less than two images can be read, or what the filter itself refuses.
    """
    file = request_folder("filters", {**scoring, **describe(named), "images": IMAGES}) / "filter.json"
    found = _read(file, model.channels)
    if found is None:
        found = _find(named, Classifier(model, place), pool)
        write_json(file, found.describe())
    scores = f"the teacher's Inception Score of the pool is {found.before:.2f}, and {found.after:.2f} filtered"
    say(f"filter {named}: {scores}{'' if found.filter else '; not kept'}")
    return found


def _find(named: names.Named, teacher: Classifier, pool: Pool) -> Adapted:
    drawn = np.random.default_rng(0).permutation(len(pool))[:IMAGES]
    images = pool.images(np.sort(drawn))
    readable = np.delete(images.pixels, list(images.problems), axis=0)
    if len(readable) < 2:
        raise RequestError(f"--filter {named} needs at least 2 readable images of the pool; give --filter none")
    shown, held = readable[::2], readable[1::2]
    target = names.find(named.name, FILTERS, KIND)
    found = names.build(target, named, KIND, teacher=teacher, pixels=torch.from_numpy(shown))
    if not isinstance(found, Filter):
        raise RequestError(f"--filter {named} gives a {type(found).__name__}, not a dfkd.data.filter.Filter")
    before, after = (_score(teacher, pixels) for pixels in (held, found(held)))
    return Adapted(found if named.name != "fitted" or after >= RISE * before else None, before, after)


def _score(teacher: Classifier, pixels: UInt8[np.ndarray, "images height width channels"]) -> float:
    return inception_score(torch.cat([teacher(part).logits.cpu() for part in torch.from_numpy(pixels).split(256)]))


def _read(file: Path, channels: int) -> Adapted | None:
    """What an earlier command has found; None where there is nothing, or it is damaged."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        before, after = map(float, stored["inception_score"])
        return Adapted(read_filter(stored, channels), before, after)
    except (OSError, ValueError, KeyError, TypeError):
        return None
