"""Records of the files of a run: request, result, failure and progress."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dfkd.config.stages.shared import Input, Interpolation
from dfkd.config.tables import load_toml
from dfkd.formats.manifest import CropShare, NetworkPrint
from dfkd.system.checksums import Entry, check_file, unsealed
from dfkd.system.errors import RequestError, reason
from dfkd.system.files import can_exist
from dfkd.system.records import Count, check_format, parse
from dfkd.system.remote_folder import LAST, folder_of

RUN_FORMAT = 1
"""Version of the format of a run (in config.toml) and of a checkpoint (in progress.json). Others are refused."""
CONFIG, RESULT, FAILED, WEIGHTS = "config.toml", LAST["run"], "failed.json", "student.safetensors"
METRICS, CHECKPOINT, LOGS, KEPT = "metrics.jsonl", "checkpoint", "logs", "weights"
"""The metrics' file, and the folders of checkpoint, logs and kept weights."""
STATE, PROGRESS = "state.pt", "progress.json"
"""Files of a checkpoint."""
HINT = "; distill again into another folder"
R = TypeVar("R")


@dataclass(frozen=True)
class ModelTable:
    """Network of a run, by which its folder is a MODEL."""

    architecture: str
    normalize: str | None = None
    image_size: int | None = None
    crop_pct: CropShare = 1.0
    interpolation: Interpolation = "bilinear"
    class_names: tuple[str, ...] = ()

    @property
    def input(self) -> Input:
        """The input that the network was trained with."""
        return Input(self.normalize, self.image_size, self.crop_pct, self.interpolation)


@dataclass(frozen=True)
class Request:
    """config.toml of a run: its network, and in `content` everything that decides the result."""

    model: ModelTable
    content: Mapping[str, Any]
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Compute:
    """Device, precision and further settings of the computation."""

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
    """Options of a distillation. `test` is the labeled DATA on which the student was evaluated."""

    teacher: str | tuple[str, ...]
    student: str
    table: Mapping[str, Any]
    test: str | None = None


@dataclass(frozen=True)
class DistillRequest:
    """config.toml of a distillation."""

    distill: DistillTable
    content: DistillContent
    model: ModelTable


@dataclass(frozen=True)
class Finished:
    """result.json of a run of any stage."""

    files: Mapping[str, Entry]
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """Result of a distillation. Measures on test images are None without `--test`."""

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
    """Origin of the student's first weights: `teacher`, `given` or `random`."""
    files: Mapping[str, Entry]
    table: Mapping[str, Any]
    test_fingerprint: str | None = None
    per_class: tuple[float | None, ...] | None = None
    """Top-1 accuracy of each class, None for a class without test images."""
    teacher_per_class: tuple[float | None, ...] | None = None
    exits: tuple[float, ...] | None = None
    """Top-1 accuracy of heads at which the student could stop early, beginning with the shallowest head."""


@dataclass(frozen=True)
class Checkpoint:
    """progress.json of a checkpoint: completed steps, seconds so far, and size and hash of its state file."""

    step: Count
    seconds: float
    state: Entry
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """Reason why a run ended before its last step."""

    why: str


def run_folder(text: str) -> Path | None:
    """Return the folder of the run that a MODEL text names, or None for another MODEL.

    A run in an object store is fetched. Raises: RequestError if there is none.
    """
    folder = folder_of(text)
    # a path can be too long: a network with the widths of all layers
    return folder if can_exist(folder / CONFIG) and (folder / CONFIG).is_file() else None


def read_request(folder: Path) -> Request:
    """Return the config.toml of any run.

    Raises: RequestError, which names the field, if the file cannot be read or was changed.
    """
    return _request(folder, Request)


def read_distillation(folder: Path) -> DistillRequest:
    """Return the config.toml of a distillation. Raises: RequestError as `read_request`."""
    return _request(folder, DistillRequest)


def read_result(folder: Path, kind: type[R], hint: str = HINT) -> R:
    """Return the result.json of a run, as a `Result` or `Finished`. `hint` is the end of the error message.

    Raises: RequestError, which names the field, if the file cannot be read or was changed.
    """
    path = folder / RESULT
    try:
        return parse(kind, unsealed(json.loads(path.read_text(encoding="utf-8"))))
    except OSError as error:  # missing permission or an unreachable server are no reason to distill again
        raise RequestError(f"{path} cannot be read: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} cannot be read ({error}){hint}") from None


def read_failure(folder: Path) -> str | None:
    """Return why the run in a folder ended before its last step, or None if no failure is recorded."""
    if (folder / RESULT).exists():
        return None
    try:
        return parse(Failure, unsealed(json.loads((folder / FAILED).read_text(encoding="utf-8")))).why
    except (OSError, ValueError, RecursionError):
        return None


def parse_progress(text: str) -> Checkpoint:
    """Return the progress.json of a checkpoint. Raises: ValueError, which names the field, if the text was changed."""
    table = json.loads(text)
    check_format(table, RUN_FORMAT)
    return parse(Checkpoint, unsealed(table))


def finished_weights(folder: Path) -> Path:
    """Return the checked file of a student's weights. Raises: RequestError if the file was changed."""
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
