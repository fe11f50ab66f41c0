"""Resolution of a request to select: everything is opened and checked, and nothing is computed or written yet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

from dfkd.config import SelectConfig
from dfkd.data import Pool, open_pool
from dfkd.data.images.frame import PHOTO_FORMAT
from dfkd.data.images.jpeg import decoders
from dfkd.data.images.nvjpeg import gpu_decoder
from dfkd.data.locate import GivenData
from dfkd.models.classifier import Classifier, examine
from dfkd.models.features.find_taps import find_taps
from dfkd.models.features.image_distance import ImageDistances
from dfkd.models.features.taps import Tap, parse_taps, run_network
from dfkd.models.load import Model
from dfkd.models.own import GivenModel
from dfkd.models.several import load_classifier
from dfkd.select.methods import Traits
from dfkd.select.pool_filter import Adapted, NamedFilter, parse_filter
from dfkd.select.score import SCORE_FORMAT
from dfkd.system import names
from dfkd.system.components import Component, Kind
from dfkd.system.console import say
from dfkd.system.device import Place, resolve_place
from dfkd.system.errors import RequestError
from dfkd.system.files import cached_folder
from dfkd.system.portable import portable
from dfkd.system.ray_session import check_installed
from dfkd.system.text import counted
from dfkd.system.versions import versions

AUTO, STATISTICS, THRESHOLD = "auto", "statistics", "threshold"
METHOD = Kind("selection method", ("dfkd.select.methods",), given=("scores", "rng"), failure="failed")


@dataclass(frozen=True)
class Request:
    """A resolved request, ready for scoring. Nothing is written yet."""

    config: SelectConfig
    method: Component
    model: Model
    pool: Pool
    place: Place
    tap: Tap | None
    filter: NamedFilter | None
    scoring: dict[str, Any]
    """Everything that decides the scores: the key of the cache."""
    content: dict[str, Any]
    """Everything that decides the selection."""

    @property
    def stored_tap(self) -> str | None:
        """Text of the tap whose features are stored with the scores."""
        return None if self.tap is None else str(self.tap)


def resolve(config: SelectConfig, method: Component, teacher: GivenModel, data: Sequence[GivenData]) -> Request:
    """Open and check everything that a request names."""
    place = resolve_place(config.device, config.precision)
    model = load_classifier(teacher, config.input)
    pool = open_pool(data, image_size=model.image_size, channels=model.channels, bits=config.bits, frame=model.frame)
    if decoder := gpu_decoder(config.decoder, place.device, pool.encoded):
        pool = pool.decoded_by(decoder)
    if config.method == AUTO:
        config = replace(config, method=_default_method(config, model, pool))
        method = check(config)
    if config.gamma is not None and (says := method.options.get("gamma")) != config.gamma:
        why = f"--method {config.method} says it" if says is not None else f"--method {method.name} has none"
        say(f"note: --gamma {config.gamma:g} changes nothing: {why}")
    if config.engine != "ray" and (config.workers is not None or config.gpus_per_worker is not None):
        say("note: --workers and --gpus-per-worker change nothing without --engine ray")
    config = _with_defaults(config, method)
    say(
        f"teacher {model.spec}: {model.classes} classes, input {pool.image_size} pixels, "
        f"{counted(model.channels, 'channel')}, normalize {model.normalize}, "
        f"{str(place.dtype).removeprefix('torch.')} on {place.device}; "
        f"pool: {len(pool):,} images"
    )
    check_count(config, len(pool))
    _check_store(config, pool)
    tap = _features_tap(config, model, pool)
    filter = parse_filter(config.filter, model, pool)
    scoring = _scoring_request(config, model, pool, place)
    options = _options(config, method, tap) | (filter.describe() if filter else {})
    content = {**scoring, "options": options, "seed": config.seed}
    config = replace(config, out=config.out or str(cached_folder("selections", content)))
    return Request(config, method, model, pool, place, tap, filter, scoring, content)


def check(config: SelectConfig) -> Component:
    """Reject an invalid request before any work. Returns the method with its `gamma`, if it has one."""
    parse_taps(config.teacher_taps)
    if config.engine == "ray":
        check_installed()
    method = METHOD.look_up(THRESHOLD if config.method == AUTO else config.method)
    if any(parameter.name == "gamma" for parameter in method.parameters):
        gamma = method.defaults.get("gamma") if config.gamma is None else config.gamma
        method = method.preset(**({"gamma": gamma} if gamma is not None else {}))
    return method.checked()


def check_count(config: SelectConfig, images: int) -> None:
    """Raise RequestError if more images are to be selected than the pool has."""
    if config.count is not None and config.count > images:
        raise RequestError(f"--count {config.count} is above the pool's {images} images; give as many or fewer")


@torch.no_grad()
def _default_method(config: SelectConfig, model: Model, pool: Pool) -> str:
    """Return the method that `auto` stands for.

    With `--gamma`, this is the threshold, which has that option. Otherwise the statistics need BatchNorm layers that
    run.
    """
    if config.gamma is not None:
        return THRESHOLD
    with (distances := ImageDistances(model.module)).watched():
        run_network(model.module, torch.zeros(2, model.channels, pool.image_size, pool.image_size))
    return STATISTICS if distances.take(2).isfinite().all() else THRESHOLD


def _check_store(config: SelectConfig, pool: Pool) -> None:
    if config.store is None:
        return
    if not pool.encoded:
        raise RequestError(
            f"--store {config.store} is for images above 64 pixels; smaller ones are stored as pixels; leave it out"
        )
    if config.store < (least := pool.frame.resized(pool.image_size)):
        raise RequestError(f"--store {config.store} is less than the {least} pixels that the teacher's input needs")


def _with_defaults(config: SelectConfig, method: Component) -> SelectConfig:
    """Return the request with the defaults of options that were not given."""
    balance = Traits.of(method.target).balance if config.balance is None else config.balance
    # the manifest's `config` always has a number: without `--gamma`, the default of the threshold
    gamma = METHOD.choose(THRESHOLD).options["gamma"] if config.gamma is None else config.gamma
    return replace(config, balance=balance, gamma=gamma)


def _scoring_request(config: SelectConfig, model: Model, pool: Pool, place: Place) -> dict[str, Any]:
    return {
        "teacher": model.fingerprint(),
        "preprocess": {
            "normalize": model.normalize,
            "image_size": pool.image_size,
            "channels": model.channels,
            **pool.frame.describe(),
        },
        "pool": pool.identity,
        "compute": {
            **place.describe(),
            "batch_size": config.batch_size,
            "score_format": SCORE_FORMAT,
            **({"photo_format": PHOTO_FORMAT} if pool.encoded else {}),
            **({"decoder": config.decoder} if config.decoder != "cpu" else {}),
        },
        "versions": versions("torch", "torchvision", "numpy", *(decoders() if pool.of_files else ("pillow",))),
    }


def short(method: str) -> str:
    """Return the text of a selection method without options that have their default; another version's as it is."""
    try:
        return method if names.parse(method).name.count(".") else METHOD.look_up(method).short
    except RequestError:
        return method


def _options(config: SelectConfig, method: Component, tap: Tap | None) -> dict[str, Any]:
    return {
        "method": portable(method.text),
        "count": config.count,
        "class_dropping": config.class_dropping,
        "balance": config.balance,
        "deduplicate": config.deduplicate,
        **({"deduplicate_pixels": pixels} if (pixels := config.deduplicate_pixels) is not None else {}),
        **({"store": config.store} if config.store is not None else {}),
        **({"features": str(tap), "faiss": version("faiss-cpu")} if tap else {}),
        **({"code": code} if (code := method.code) else {}),
    }


def _features_tap(config: SelectConfig, model: Model, pool: Pool) -> Tap | None:
    """Return the tap of the teacher's features if this selection needs features."""
    if config.deduplicate is None and config.balance != "cluster":
        if config.teacher_taps:
            say("note: --teacher-taps changes nothing without --deduplicate or --balance cluster")
        return None
    example = torch.zeros(1, model.channels, pool.image_size, pool.image_size)
    return find_taps(model.module, example, parse_taps(config.teacher_taps), ("last",)).taps["last"]


def scorable(request: Request, adapted: Adapted | None) -> tuple[Classifier, Pool, dict[str, Any]]:
    """Return the teacher, the pool through its filter, and the cache's key: everything that decides the scores."""
    pool, scoring, tap = request.pool, request.scoring, request.tap
    if adapted and adapted.filter:
        pool = pool.filtered(adapted.filter)
        scoring = {**scoring, "filter": adapted.filter.describe()}
    teacher = Classifier(request.model, request.place, {"last": tap} if tap else {}, fold=True)
    examine(teacher, pool)
    return teacher, pool, scoring
