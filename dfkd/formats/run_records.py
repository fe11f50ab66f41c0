"""What the files of a run say, as records: its request, its result, why it failed, how far it came."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dfkd.config.tables import load_toml
from dfkd.data.images.frame import Interpolation
from dfkd.formats.manifest import CropShare, NetworkPrint
from dfkd.system.checksums import Entry, check_file, unsealed
from dfkd.system.errors import RequestError
from dfkd.system.records import Count, check_format, parse

RUN_FORMAT = 1
"""Of a run's folder, in config.toml, and of a checkpoint, in its progress.json. Another one is refused."""
CONFIG, RESULT, FAILED, WEIGHTS = "config.toml", "result.json", "failed.json", "student.safetensors"
HINT = "; distill again into another folder"
R = TypeVar("R")


@dataclass(frozen=True)
class ModelTable:
    """The network of a run: what makes its folder a MODEL."""

    architecture: str
    normalize: str | None = None
    image_size: int | None = None
    crop_pct: CropShare = 1.0
    interpolation: Interpolation = "bilinear"
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A run's config.toml: its network, and in `content` everything that decides the result."""

    model: ModelTable
    content: Mapping[str, Any]
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Compute:
    """Where and how it was computed."""

    device: str
    precision: str
    table: Mapping[str, Any]


@dataclass(frozen=True)
class DistillContent:
    """Everything that decides a student."""

    teacher: NetworkPrint
    student: NetworkPrint
    normalize: str
    selections: tuple[str, ...]
    selected: tuple[str, ...]
    options: Mapping[str, Any]
    compute: Compute
    versions: Mapping[str, str]
    table: Mapping[str, Any]


@dataclass(frozen=True)
class DistillTable:
    """The options of a distillation; `test` is what its student was measured on."""

    teacher: str | tuple[str, ...]
    student: str
    table: Mapping[str, Any]
    test: str | None = None


@dataclass(frozen=True)
class DistillRequest:
    """The config.toml of a distillation."""

    distill: DistillTable
    content: DistillContent


@dataclass(frozen=True)
class Finished:
    """The result.json of a run of whatever stage."""

    files: Mapping[str, Entry]
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """The result of a distillation. Without a test its figures are None."""

    name: str
    seed: int
    source: str
    student_parameters: Count
    steps: Count
    images_seen: Count
    teacher_forwards: Count
    seconds: float
    top1: float | None
    agreement: float | None
    teacher_top1: float | None
    test_images: Count | None
    generator_steps: Count | None
    begins: str | None
    """`teacher`, `given` or `random`: where the student's first weights come from."""
    files: Mapping[str, Entry]
    table: Mapping[str, Any]
    test_fingerprint: str | None = None
    per_class: tuple[float | None, ...] | None = None
    """Top-1 of each class; None for a class without test images."""
    teacher_per_class: tuple[float | None, ...] | None = None
    exits: tuple[float, ...] | None = None
    """Top-1 of heads at which the student could stop earlier, from the shallowest."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's progress.json: the step that is done, the seconds so far, and what was written of its state."""

    step: Count
    seconds: float
    state: Entry
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """Why a run ended before its last step."""

    why: str


def read_request(folder: Path) -> Request:
    """The config.toml of any run. Raises: RequestError, naming the field, where it cannot be read, or was changed."""
    return _request(folder, Request)


def read_distillation(folder: Path) -> DistillRequest:
    """The config.toml of a distillation. Raises: RequestError as `read_request`."""
    return _request(folder, DistillRequest)


def read_result(folder: Path, kind: type[R], hint: str = HINT) -> R:
    """A run's result.json, as a `Result` or `Finished`; `hint` is the end of the message.

    Raises: RequestError, naming the field, where it cannot be read, or was changed.
    """
    path = folder / RESULT
    try:
        return parse(kind, unsealed(json.loads(path.read_text(encoding="utf-8"))))
    except OSError as error:  # a permission, a server that is away: no reason to distill again
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} cannot be read ({error}){hint}") from None


def read_failure(folder: Path) -> str | None:
    """Why the run in a folder ended before its last step; None where it did not, or nothing is known of it."""
    if (folder / RESULT).exists():
        return None
    try:
        return parse(Failure, unsealed(json.loads((folder / FAILED).read_text(encoding="utf-8")))).why
    except (OSError, ValueError, RecursionError):
        return None


def parse_progress(text: str) -> Checkpoint:
    """A checkpoint's progress.json. Raises: ValueError, naming the field, where it was changed."""
    table = json.loads(text)
    check_format(table, RUN_FORMAT)
    return parse(Checkpoint, unsealed(table))


def finished_weights(folder: Path) -> Path:
    """The weights of a run's student. Raises: RequestError where they are not those that were written."""
    path = folder / WEIGHTS
    if (folder / RESULT).exists():
        files = read_result(folder, Finished).files
        if WEIGHTS not in files:
            raise RequestError(f"{folder / RESULT} cannot be read (it has no files.{WEIGHTS}){HINT}")
        check_file(path, files[WEIGHTS], HINT)
    return path


def _request(folder: Path, kind: type[R]) -> R:
    path = folder / CONFIG
    try:
        table = load_toml(path)
        check_format(table, RUN_FORMAT)
        return parse(kind, unsealed(table))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} cannot be read ({error}){HINT}") from None
