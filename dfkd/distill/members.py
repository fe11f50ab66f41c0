"""`--also`: the requests of students that learn together in one command, and checks of what they share."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from dfkd.config import DistillConfig
from dfkd.config.option import field_hints
from dfkd.config.tables import differences
from dfkd.config.texts import flag, kind_of, value
from dfkd.distill.grafting import grafts_with
from dfkd.distill.prepare import Distillation
from dfkd.models.state import tensors_of
from dfkd.system.console import say
from dfkd.system.errors import RequestError, nearest
from dfkd.system.files import hash_of
from dfkd.system.remote import is_remote

OWN = (
    *("student", "student_seed", "student_taps", "teacher_taps", "init", "prune", "quantize"),
    *("specialists", "loss", "out", "name"),
    *("optimizer", "lr", "weight_decay", "schedule", "warmup", "ema", "batchnorm", "dropout", "reestimate"),
)
"""Options in which the students may differ.

Options that decide images, views or the teacher's answers are the same for all."""


def members(config: DistillConfig) -> list[DistillConfig]:
    """Return the request of each student, as a command for this student alone would have it. Raises: RequestError."""
    first = replace(config, also=())
    found = [first, *(replace(first, **{"name": None, **_differing(text)}) for text in config.also)]
    if remote := next((member.out for member in found if len(found) > 1 and is_remote(member.out)), None):
        raise RequestError(f"--out {remote} is in an object store; with --also, name folders on this machine")
    if len(found) > 1 and config.source is not None:
        raise RequestError(
            f"--source {config.source} learns from its student, and with --also there are several; give each a command "
            "of its own"
        )
    return found


def learning_together(several: Sequence[Distillation]) -> list[Distillation]:
    """Return the students with their peers added to the content, if a student learns from them.

    Raises: RequestError if two students are equal or write one folder, or if a student would see other images or views.
    """
    for (m, one), (n, other) in combinations(enumerate(several, 1), 2):
        if one.config.out and Path(one.config.out).resolve() == Path(other.config.out).resolve():
            raise RequestError(f"--out {one.config.out} is given to students {m} and {n}; give each a folder")
        if one.content == other.content:
            raise RequestError(f"students {m} and {n} are the same; give one of them another --student-seed, or --loss")
    for number, other in enumerate(several[1:], 2):
        different = differences(_lessons(several[0]), _lessons(other))
        if different:
            raise RequestError(
                f"student {number} would be taught differently from student 1 ({'; '.join(different)}): give both the "
                "same options, such as --init none, or each a command of its own"
            )
        if other.config.graft and not grafts_with(*(tensors_of(p.student.module) for p in (several[0], other))):
            raise RequestError(
                f"--graft {other.config.graft} mixes the convolutions of one architecture; student {number}, "
                f"{other.student.spec}, is of another one than {several[0].student.spec}, or has none"
            )
        if other.trainer.source.follows:
            raise RequestError(
                f"--batches {other.config.batches} follows its student, and with --also there are several; leave it out"
            )
    if several[0].config.graft and len(several) == 2 and len({_learns(prepared) for prepared in several}) == 1:
        say("note: --graft makes two students of one rate and loss equal; give one of them another --lr in --also")
    marks = [hash_of(prepared.content) for prepared in several]
    found = []
    for number, prepared in enumerate(several):
        peers = {"peers": marks[:number] + marks[number + 1 :]} if prepared.mutual else {}
        found.append(replace(prepared, content={**prepared.content, **peers}))
    return found


def _lessons(prepared: Distillation) -> dict[str, Any]:
    """Return everything that decides the images, the views, and the teacher's answers to them."""
    plan, own = asdict(prepared.trainer.plan), ("lr", "warmup", "ema", "batchnorm", "dropout", "reestimate")
    shared = ("teacher", "normalize", "selections", "weights", "compute")
    return {
        **{name: value for name, value in plan.items() if name not in own},
        **{name: prepared.content[name] for name in shared if name in prepared.content},
        "batches": prepared.config.batches,
        "teacher_views": prepared.config.teacher_views,
        "layers fitted": prepared.trainer.fits,
    }


def _learns(prepared: Distillation) -> tuple[Any, ...]:
    """Return what else moves the weights of students that see the same batches."""
    return prepared.trainer.plan.lr, prepared.config.optimizer, prepared.config.loss


def _differing(text: str) -> dict[str, Any]:
    """Return the options that one text of `--also` gives."""
    given: dict[str, list[str]] = {}
    name = None
    for word in _words(text):
        if word.startswith("--"):
            written, equals, rest = word.partition("=")
            name = written[2:].replace("-", "_")
            if name not in OWN:
                raise RequestError(
                    f"--also {text.strip()!r}: {written} is not an option in which students of one command may "
                    f"differ{nearest(written, [flag(own) for own in OWN])}"
                )
            if name in given:
                raise RequestError(f"--also {text.strip()!r}: {written} is given twice")
            given[name] = [rest] if equals else []
        elif name is None:
            raise RequestError(f"--also {text.strip()!r} has no option; write '--student B --out run-2'")
        else:
            given[name].append(word)
    if "out" not in given:
        raise RequestError(f"--also {text.strip()!r} lacks --out, the folder of that student's run")
    return {name: _value(text, name, words) for name, words in given.items()}


def _words(text: str) -> list[str]:
    try:
        return [os.path.expanduser(word) for word in shlex.split(text)]
    except ValueError as error:
        raise RequestError(f"--also {text.strip()!r} cannot be read ({error})") from None


def _value(text: str, name: str, words: list[str]) -> Any:
    hint = field_hints(DistillConfig)[name]
    several = kind_of(hint)[1]
    if len(words) != 1 and not (several and words):
        raise RequestError(f"--also {text.strip()!r}: {flag(name)} needs {'a value' if not words else 'one value'}")
    try:
        values = tuple(value(name, word, hint) for word in words)
    except ValueError as error:
        raise RequestError(f"--also {text.strip()!r}: {error}") from None
    return values if several else values[0]
