"""`dfkd select`: teacher and pool -> a selection folder."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from dfkd.config import SelectConfig
from dfkd.data import Pool
from dfkd.data.locate import GivenData
from dfkd.formats.manifest import MANIFEST
from dfkd.formats.shards import Shards
from dfkd.models.own import GivenModel
from dfkd.models.several import given_teacher
from dfkd.select import streaming
from dfkd.select.choose import Choice, TooFew, choose
from dfkd.select.duplicates_on_disk import near_duplicates_on_disk
from dfkd.select.journal import JOURNAL
from dfkd.select.methods import Traits
from dfkd.select.near_copies import near_copies
from dfkd.select.pool_filter import Adapted, adapt
from dfkd.select.ray_scorer import RayScorer
from dfkd.select.request import METHOD, Request, check, resolve, scorable
from dfkd.select.score import UNREADABLE_NAMED, PartScorer, Scorer, check_unreadable, score_pool
from dfkd.select.selected import Selected
from dfkd.select.selection_writer import check_partial, is_done, write
from dfkd.select.share import WHOLE, PoolShare
from dfkd.select.stored_scores import PoolScores, parts_of
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.files import output_path, partial_folder, request_folder
from dfkd.system.foreign import Foreign
from dfkd.system.locks import locked, once
from dfkd.system.text import inspect_command, of_classes

__all__ = ["check", "run", "select"]


def run(config: SelectConfig) -> Path:
    """Select as `config` says, and return the folder. A complete selection of the same request does not change."""
    return select(config, given_teacher(config.teacher, config.mixing), config.pool)


def select(config: SelectConfig, teacher: GivenModel, pool: Sequence[GivenData]) -> Path:
    """Select from a teacher and a pool, which may be Python objects, and return the folder.

    A complete selection of the same request does not change. Without `out`, the folder is in the cache.
    """
    if config.out:
        output_path(config.out)
    method, share = check(config), PoolShare.parse(config.part) if config.part is not None else None
    if config.engine == "ray" and not _in_texts(config, teacher, pool):
        raise RequestError("--engine ray takes a MODEL and DATA as texts: its workers open them themselves")
    request = resolve(config, method, teacher, pool)
    config, out = request.config, output_path(request.config.out)

    def done() -> bool:
        return is_done(out, config.out, request.content)

    if share and not done():  # nothing is written to `out`, so that several commands can score at once
        _score(request, share)
        say(f"part {share} is scored; the same command without --part selects, when the others are scored too")
        return out
    selected = once(done, lambda: locked(partial_folder(out), f"--out {config.out}"), lambda: _make(request, out))
    if selected is None:
        found = [(one.source, one.why) for one in Shards(out).manifest.unreadable]
        check_unreadable(len(found), len(request.pool), config.max_unreadable, lambda: found[:UNREADABLE_NAMED])
        say(f"{config.out}: this selection is complete already")
    else:
        _report(selected)
    return out


def _in_texts(config: SelectConfig, teacher: GivenModel, pool: Sequence[GivenData]) -> bool:
    """Return whether the texts of `config` say all of the teacher and the pool."""
    said = isinstance(teacher, str) or teacher == given_teacher(config.teacher, config.mixing)
    return said and all(isinstance(one, str) for one in pool)


def _make(request: Request, out: Path) -> Selected:
    """Score, choose and write, while the folder of the temporary name is locked."""
    config, partial = request.config, partial_folder(out)
    check_partial(partial)
    try:
        pool, scores, adapted = _score(request)
        choice = _choose(request, scores)
        selected = Selected(
            config,
            request.model,
            pool,
            scores,
            choice,
            request.content,
            filter=adapted.describe() if adapted else None,
            left_out=pool.left_out,
            bits=pool.bits,
            store=config.store,
        )
        write(partial, out, selected)
    except RequestError:
        if not (partial / JOURNAL).exists():  # with a journal, shards are kept: the pool may be unreadable only for now
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return selected


def _score(request: Request, share: PoolShare = WHOLE) -> tuple[Pool, PoolScores, Adapted | None]:
    """Return the pool through its filter, the scores of a share of the pool, and the result of the filter."""
    config, nearest = request.config, Traits.of(request.method.target).typical
    adapted = None
    if request.filter:
        adapted = adapt(request.filter, request.model, request.place, request.pool, request.scoring, nearest)
    teacher, pool, scoring = scorable(request, adapted)
    folder, tap = request_folder("scores", scoring), request.stored_tap
    scorer: Scorer = PartScorer(teacher, pool, folder, config.batch_size, tap)
    if config.engine == "ray":
        scorer = RayScorer(request, adapted, scoring, folder)
    parts = share.parts(parts_of(len(pool)))
    scores = score_pool(pool, folder, scorer, tap=tap, max_unreadable=config.max_unreadable, parts=parts)
    return pool, scores, adapted


def _choose(request: Request, scores: PoolScores) -> Choice:
    """Choose images in memory, or for many scores part by part. Raises: RequestError if too few are left."""
    method, balance = request.method, request.config.balance or "none"
    streams = scores.rows > streaming.IN_MEMORY and Traits.of(method.target).scale and balance != "cluster"
    try:
        return (_choose_streaming if streams else _choose_in_memory)(request, scores, balance)
    except TooFew as few:
        raise RequestError(f"--{few}; {_instead(few, request)}") from None


def _choose_in_memory(request: Request, scores: PoolScores, balance: str) -> Choice:
    config, method = request.config, request.method
    similarity, seen = config.deduplicate_pixels, scores.cells
    return choose(
        scores.images,
        scores.readable,
        lambda scores, rng: method.build(scores=scores, rng=rng),
        count=config.count,
        seed=config.seed,
        reach=Traits.of(method.target).reach,
        features=scores.features,
        balance=balance,
        deduplicate=config.deduplicate,
        copies=None if similarity is None else lambda rows, needed: near_copies(rows, seen, similarity, needed),
    )


def _choose_streaming(request: Request, scores: PoolScores, balance: str) -> Choice:
    config, method = request.config, request.method
    traits, folder = Traits.of(method.target), partial_folder(output_path(config.out)) / "data-near-duplicates"
    compared = ((scores.features, config.deduplicate), (scores.cells, config.deduplicate_pixels))
    with Foreign(f"{method.kind.name} {method.text!r} {method.kind.failure}:", method.target):
        assert traits.scale is not None
        scale = traits.scale(**method.options)
        if scale.missing:
            scale = replace(scale, missing=f"{method.kind.name} {method.name}: {scale.missing}")
        return streaming.choose_streaming(
            scores.parts,
            scores.rows,
            scale,
            count=config.count,
            seed=config.seed,
            reach=traits.reach,
            groups=request.model.classes if balance == "class" else None,
            deduplicate=[
                partial(near_duplicates_on_disk, features=features, similarity=similarity, folder=folder)
                for features, similarity in compared
                if similarity is not None
            ],
        )


def _instead(few: TooFew, request: Request) -> str:
    """Return what to ask for if there are fewer images than `--count`."""
    method = request.method
    in_its_text = "gamma" in METHOD.look_up(request.config.method).options  # then --gamma would change nothing
    if "gamma" in method.options and not in_its_text and few.wanted <= few.usable and few.left == few.admitted:
        enough = math.ceil(1000 * few.wanted / few.usable) / 1000
        return f"--gamma {enough:g} admits enough, or give --count {few.left}"
    return f"give --count {few.left}"


def _report(selected: Selected) -> None:
    out, choice, scores, pool = selected.config.out, selected.choice, selected.scores, selected.pool
    counts = {reason: n for reason, n in choice.counts().items() if n}
    names = selected.model.class_names
    if choice.threshold is not None:
        say(f"threshold: confidence >= {choice.threshold:.4f} admits {choice.admitted:,} of {len(pool):,} images")
    say(f"images by reason: {', '.join(f'{n:,} {reason}' for reason, n in counts.items())}")
    say(f"selected by predicted class: {of_classes(selected.per_class.tolist(), MANIFEST, ',', names)}")
    if choice.repeated:
        say(f"note: {choice.repeated:,} of the selected images are near-copies of others; too few others are left")
    if scores.problems:
        first = ", ".join(pool.origins(np.array(sorted(scores.problems)[:UNREADABLE_NAMED])))
        more = f", ...; {MANIFEST} names them" if len(scores.problems) > UNREADABLE_NAMED else ""
        say(f"unreadable and skipped: {len(scores.problems):,} ({first}{more})")
    say(f"{out}: {len(choice):,} images; look at them with: {inspect_command(str(out))}")
