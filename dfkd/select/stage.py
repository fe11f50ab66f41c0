"""`dfkd select`: teacher and pool -> a selection folder."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfkd.config import SelectConfig
from dfkd.data import Pool, open_pool
from dfkd.data.images.frame import PHOTO_FORMAT
from dfkd.data.locate import GivenData
from dfkd.formats.manifest import MANIFEST
from dfkd.models.classifier import Classifier, examine
from dfkd.models.features.find_taps import find_taps
from dfkd.models.features.image_distance import ImageDistances
from dfkd.models.features.taps import Tap, parse_taps, run_network
from dfkd.models.load import Model
from dfkd.models.own import GivenModel
from dfkd.models.several import given_teacher, load_classifier
from dfkd.select.choose import Choice, TooFew, choose
from dfkd.select.journal import JOURNAL
from dfkd.select.methods import Traits
from dfkd.select.pool_filter import Adapted, NamedFilter, adapt, parse_filter
from dfkd.select.score import SCORE_FORMAT, WHOLE, PoolScores, Share, TooManyUnreadable, score_pool
from dfkd.select.selection_writer import Selected, check_partial, is_done, write
from dfkd.system.components import Component, Kind
from dfkd.system.console import say
from dfkd.system.device import Place, resolve_place
from dfkd.system.errors import RequestError
from dfkd.system.files import output_path, partial_folder, request_folder, result_folder
from dfkd.system.locks import locked, once
from dfkd.system.portable import portable
from dfkd.system.text import inspect_command, of_classes
from dfkd.system.versions import versions

AUTO, STATISTICS, THRESHOLD = "auto", "statistics", "threshold"
METHOD = Kind("selection method", ("dfkd.select.methods",), given=("scores", "rng"), failure="failed")


@dataclass(frozen=True)
class Request:
    """What a request resolves to, ready to score; nothing is written yet."""

    config: SelectConfig
    method: Component
    model: Model
    pool: Pool
    place: Place
    tap: Tap | None
    filter: NamedFilter | None
    scoring: dict[str, Any]
    """Everything that decides the scores; the cache's key."""
    content: dict[str, Any]
    """Everything that decides the selection."""


def run(config: SelectConfig) -> Path:
    """Select as `config` says; a complete selection of the same request is left as it is. Returns its folder."""
    return select(config, given_teacher(config.teacher, config.mixing), config.pool)


def select(config: SelectConfig, teacher: GivenModel, pool: Sequence[GivenData]) -> Path:
    """The same, from a teacher and a pool that may be at hand already; without a folder into one of the cache."""
    if config.out:
        output_path(config.out)
    method, share = check(config), Share.parse(config.part) if config.part is not None else None
    request = _resolve(config, method, teacher, pool)
    config, out = request.config, output_path(request.config.out)

    def done() -> bool:
        return is_done(out, config.out, request.content)

    if share and not done():  # nothing is written to `out`, so that several commands can score at once
        _score(request, share)
        say(f"part {config.part} is scored; the same command without --part selects, when the others are scored too")
        return out
    selected = once(done, lambda: locked(partial_folder(out), config.out), lambda: _make(request, out))
    if selected is None:
        say(f"{config.out}: this selection is complete already")
    else:
        _report(selected)
    return out


def _resolve(config: SelectConfig, method: Component, teacher: GivenModel, data: Sequence[GivenData]) -> Request:
    """Open and check everything."""
    place = resolve_place(config.device, config.precision)
    model = load_classifier(
        teacher,
        normalize=config.normalize,
        image_size=config.image_size,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
    )
    pool = open_pool(data, image_size=model.image_size, channels=model.channels, bits=config.bits, frame=model.frame)
    if config.method == AUTO:
        config = replace(config, method=_default_method(config, model, pool))
        method = check(config)
    if config.gamma is not None and (says := method.options.get("gamma")) != config.gamma:
        why = f"--method {config.method} says it" if says is not None else f"--method {method.name} has none"
        say(f"note: --gamma {config.gamma:g} changes nothing: {why}")
    config = _with_defaults(config, method)
    say(
        f"teacher {model.spec}: {model.classes} classes, input {pool.image_size} pixels, {model.channels} channels, "
        f"normalize {model.normalize}, {place.dtype} on {place.device}; pool: {len(pool):,} images"
    )
    if config.count is not None and config.count > len(pool):
        raise RequestError(f"--count {config.count} is above the pool's {len(pool)} images; give as many or fewer")
    _check_store(config, pool)
    tap = _features_tap(config, model, pool)
    filter = parse_filter(config.filter, model, pool)
    scoring = _scoring_request(config, model, pool, place)
    options = _options(config, method, tap) | (filter.describe() if filter else {})
    content = {**scoring, "options": options, "seed": config.seed}
    config = replace(config, out=config.out or result_folder("selections", content))
    return Request(config, method, model, pool, place, tap, filter, scoring, content)


def _make(request: Request, out: Path) -> Selected:
    """Score, choose and write, while the folder of the temporary name is locked."""
    config, partial = request.config, partial_folder(out)
    check_partial(partial)
    try:
        pool, scores, adapted = _score(request)
        choice, found = _choose(config, request.method, scores), adapted.describe() if adapted else None
        of_pool = Selected(config, request.model, pool, scores, choice, request.content, filter=found)
        selected = replace(of_pool, left_out=pool.left_out, bits=pool.bits, store=config.store)
        write(partial, out, selected)
    except RequestError:
        if not (partial / JOURNAL).exists():  # else a pool that cannot be read just now: shards are kept
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return selected


def check(config: SelectConfig) -> Component:
    """Refuse what can be refused before any work. Returns the method, with the `gamma` of `--gamma` or its own."""
    parse_taps(config.teacher_taps)
    method = METHOD.look_up(THRESHOLD if config.method == AUTO else config.method)
    if any(parameter.name == "gamma" for parameter in method.parameters):
        gamma = method.defaults.get("gamma") if config.gamma is None else config.gamma
        method = method.preset(**({"gamma": gamma} if gamma is not None else {}))
    return method.checked()


@torch.no_grad()
def _default_method(config: SelectConfig, model: Model, pool: Pool) -> str:
    """What `auto` stands for: `--gamma` is an option of the threshold, and statistics are those of BatchNorm layers."""
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
            f"--store {config.store} is for photographs; up to 64 pixels the pixels themselves are stored"
        )
    if config.store < (least := pool.frame.resized(pool.image_size)):
        raise RequestError(f"--store {config.store} is less than the {least} pixels that the teacher's input needs")


def _with_defaults(config: SelectConfig, method: Component) -> SelectConfig:
    """The request with what stands for options that were not given."""
    balance = Traits.of(method.target).balance if config.balance is None else config.balance
    # in a manifest's `config` a number stands, whatever the method: that of the default method
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
        },
        "versions": versions("torch", "torchvision", "numpy", "pillow"),
    }


def _score(request: Request, share: Share = WHOLE) -> tuple[Pool, PoolScores, Adapted | None]:
    """The pool through its filter, the scores of a share of it, and what was found for a filter."""
    config, model, pool, scoring, tap = request.config, request.model, request.pool, request.scoring, request.tap
    nearest = Traits.of(request.method.target).typical
    adapted = adapt(request.filter, model, request.place, pool, scoring, nearest) if request.filter else None
    if adapted and adapted.filter:
        pool = pool.filtered(adapted.filter)
        scoring = {**scoring, "filter": adapted.filter.describe()}
    teacher = Classifier(model, request.place, {"last": tap} if tap else {}, fold=True)
    examine(teacher, pool)
    try:
        scores = score_pool(
            teacher,
            pool,
            request_folder("scores", scoring),
            batch_size=config.batch_size,
            tap=tap,
            max_unreadable=config.max_unreadable,
            share=share,
        )
    except TooManyUnreadable as many:
        raise RequestError(f"{many.count}, above --max-unreadable {many.share:g}: {many.rest}") from None
    return pool, scores, adapted


def _options(config: SelectConfig, method: Component, tap: Tap | None) -> dict[str, Any]:
    return {
        "method": portable(method.text),
        "count": config.count,
        "class_dropping": config.class_dropping,
        "balance": config.balance,
        "deduplicate": config.deduplicate,
        **({"store": config.store} if config.store is not None else {}),
        **({"features": str(tap), "faiss": version("faiss-cpu")} if tap else {}),
        **({"code": code} if (code := method.code) else {}),
    }


def _features_tap(config: SelectConfig, model: Model, pool: Pool) -> Tap | None:
    """Where the teacher's features are taken, if this selection needs them."""
    if config.deduplicate is None and config.balance != "cluster":
        if config.teacher_taps:
            say("note: --teacher-taps changes nothing without --deduplicate or --balance cluster")
        return None
    example = torch.zeros(1, model.channels, pool.image_size, pool.image_size)
    return find_taps(model.module, example, parse_taps(config.teacher_taps), ("last",)).taps["last"]


def _choose(config: SelectConfig, method: Component, scores: PoolScores) -> Choice:
    try:
        return choose(
            scores.images,
            scores.readable,
            lambda scores, rng: method.build(scores=scores, rng=rng),
            count=config.count,
            seed=config.seed,
            features=scores.features,
            balance=config.balance or "none",
            deduplicate=config.deduplicate,
            reach=Traits.of(method.target).reach,
        )
    except TooFew as few:
        in_its_text = "gamma" in METHOD.look_up(config.method).options  # then the flag would change nothing
        if "gamma" in method.options and not in_its_text and few.wanted <= few.usable and few.left == few.admitted:
            enough = math.ceil(1000 * few.wanted / few.usable) / 1000
            raise RequestError(f"--{few}; --gamma {enough:g} admits enough, or ask for {few.left}") from None
        raise RequestError(f"--{few}; ask for {few.left}") from None


def _report(selected: Selected) -> None:
    out, choice, scores, pool = selected.config.out, selected.choice, selected.scores, selected.pool
    counts = {reason: n for reason, n in choice.counts().items() if n}
    per_class = np.bincount(scores.images.prediction[choice.indices], minlength=selected.model.classes)
    names = selected.model.class_names
    if choice.threshold is not None:
        say(f"threshold: confidence >= {choice.threshold:.4f} admits {choice.admitted:,} of {len(pool):,} images")
    say(f"images by reason: {', '.join(f'{n:,} {reason}' for reason, n in counts.items())}")
    say(f"selected by predicted class: {of_classes(per_class.tolist(), MANIFEST, ',', names)}")
    if scores.problems:
        say(f"unreadable and skipped: {len(scores.problems):,}; {MANIFEST} names them")
    say(f"{out}: {len(choice.indices):,} images; look at them with: {inspect_command(str(out))}")
