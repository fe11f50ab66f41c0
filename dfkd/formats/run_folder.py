"""A run's folder: its request, metrics, last complete checkpoint, and at the end the student and the result."""

import contextlib
import io
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor

from dfkd.config.tables import differences, load_toml
from dfkd.system.checksums import check_fields, check_file, entry, sealed, unsealed
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.files import (
    PARTIAL,
    current_folder,
    replace_folder,
    replacing,
    restore_folder,
    sync,
    write_json,
    write_text,
)
from dfkd.system.locks import LOCK, locked

CONFIG, METRICS, CHECKPOINT, WEIGHTS, RESULT = (
    "config.toml",
    "metrics.jsonl",
    "checkpoint",
    "student.safetensors",
    "result.json",
)
STATE, PROGRESS = "state.pt", "progress.json"
"""The files of a checkpoint."""
FAILED = "failed.json"
"""Why a run ended before its last step. Another request may take its folder."""
_TEXT, _NUMBER, _TABLE, _NOTHING = (str,), (int, float), (dict,), (type(None),)
RESULT_FIELDS: dict[str, tuple[type, ...]] = {
    "name": _TEXT,
    "seed": _NUMBER,
    "source": _TEXT,
    "student_parameters": _NUMBER,
    "top1": (*_NUMBER, *_NOTHING),
    **dict.fromkeys(("agreement", "teacher_top1", "test_images"), (*_NUMBER, *_NOTHING)),
    **dict.fromkeys(("steps", "images_seen", "teacher_forwards", "seconds"), _NUMBER),
}
"""The fields that every result has, with their types; one without a test has None for its figures."""
MODEL_FIELDS: dict[str, tuple[type, ...]] = {
    "model.architecture": _TEXT,
    "model.normalize": (*_TEXT, *_NOTHING),
    "model.image_size": (int, *_NOTHING),
}
"""What makes a run a MODEL, of its config.toml."""
MEND = "; distill again into another folder"
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, pickle.UnpicklingError)


class Progress:
    """What is written down while something trains: rows of metrics, and the last complete checkpoint."""

    def __init__(self, folder: Path, hint: str) -> None:
        """`hint` ends the message of a damaged checkpoint."""
        self.folder, self._hint = folder, hint

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to the metrics."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def save(self, state: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Replace the checkpoint: tensors in state.pt, and what a reader wants to know in progress.json."""
        if (self.folder / METRICS).exists():
            sync(self.folder / METRICS)  # its rows up to this step are part of what a resumed run goes on from
        partial = self.folder / (CHECKPOINT + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        # through memory: of a full disk, torch's own writer says something about positions
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        with replacing(partial / STATE) as file:
            file.write_bytes(buffer.getbuffer())
        write_json(partial / PROGRESS, sealed({**progress, "state": entry(partial / STATE)}))
        replace_folder(partial, self.folder / CHECKPOINT)

    def load(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The last complete checkpoint's state and progress; rows of metrics past its step are dropped.

        Raises: RequestError for a damaged checkpoint.
        """
        folder = current_folder(self.folder / CHECKPOINT)
        metrics = self.folder / METRICS
        step, found = 0, None
        if folder is not None:
            try:
                progress = unsealed(json.loads((folder / PROGRESS).read_text(encoding="utf-8")))
                if "state" in progress:  # else it is from a version that wrote no checksums
                    check_file(folder / STATE, progress["state"])
                found = torch.load(folder / STATE, map_location="cpu", weights_only=True), progress
                step = progress["step"]
            except (RequestError, *_UNREADABLE) as error:
                what = str(error).partition("\n")[0] or type(error).__name__
                raise RequestError(f"{folder} is damaged ({what}){self._hint}") from None
        if metrics.exists():
            rows = [line for line in _lines(metrics) if _step(line) <= step]
            write_text(metrics, "".join(row + "\n" for row in rows))
        return found


class Run(Progress):
    """One distillation's folder. Opening it again with the same request goes on from its last checkpoint."""

    def __init__(
        self,
        folder: Path,
        shown: str,
        request: Mapping[str, Any],
        fields: Mapping[str, tuple[type, ...]] | None = None,
    ) -> None:
        """Name a new run or one that was begun; `request` is `config.toml`, whose table `content` decides the result.

        `shown` is the folder's name in messages; `fields` are those that a result must have, with their types.
        Nothing is written before `writing`.
        Raises: RequestError where the folder holds another run, with the fields that differ, or something else.
        """
        super().__init__(folder, "; delete it, and the run starts anew")
        self.shown, self.request, self._fields = shown, _plain(request), fields or {}
        self._check()

    def _check(self) -> str | None:
        """Why another request, which this one replaces, failed. Raises: RequestError as `__init__`."""
        folder = self.folder
        # before the question for the first file: another command may be writing it
        others = folder.is_dir() and any(not _is_leftover(file) for file in folder.iterdir())
        if (folder / CONFIG).exists():
            written = read_request(folder)
            try:
                check_fields(written, {name: _TABLE for name, table in self.request.items() if isinstance(table, dict)})
            except ValueError as error:
                raise RequestError(f"{folder / CONFIG} is damaged ({error}){MEND}") from None
            different = differences(written["content"], self.request["content"])
            if different and (failed := read_failure(folder)) is not None:
                return failed
            if different:
                raise RequestError(f"--out {self.shown} holds another run: {'; '.join(different)}; give another folder")
        elif others or (folder.exists() and not folder.is_dir()):
            raise RequestError(f"--out {self.shown} holds something that is no run; give another folder")
        return None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other commands out of the folder while the block runs, and remove what a killed one left half written.

        A RequestError that ends the block before there is a result is written down.
        Raises: RequestError where another command writes it.
        """
        with locked(self.folder, self.shown):
            failed = self._check()  # another command may have been here since
            if failed is not None:
                say(f"{self.shown}: another request failed there ({failed}); the run starts anew")
                self._forget()
            for file in self.folder.iterdir():
                if _is_leftover(file) and file.name != LOCK:
                    shutil.rmtree(file) if file.is_dir() else file.unlink()
            restore_folder(self.folder / CHECKPOINT)
            if not (self.folder / RESULT).exists():  # one that was begun is finished as this request has it
                write_text(self.folder / CONFIG, tomli_w.dumps(sealed(self.request)))
            (self.folder / FAILED).unlink(missing_ok=True)
            try:
                yield
            except RequestError as error:
                if not (self.folder / RESULT).exists():
                    with contextlib.suppress(OSError):  # what went wrong before matters more
                        write_json(self.folder / FAILED, sealed({"why": str(error)}))
                raise

    def _forget(self) -> None:
        """Remove what another request has left; that it failed, and its request, is replaced last."""
        for folder in self.folder.glob(f"{CHECKPOINT}*"):
            shutil.rmtree(folder)
        (self.folder / METRICS).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a command has left that was killed just after its last step, if nobody is writing."""
        old = self.folder / f"{CHECKPOINT}.old"
        if old.exists() or any(_is_leftover(file) for file in self.folder.iterdir()):
            with contextlib.suppress(RequestError, OSError), self.writing():
                pass

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished run. Raises: RequestError where it cannot be read."""
        path = self.folder / RESULT
        try:
            if not path.exists():
                return None
            result = read_result(self.folder)
            check_fields(result, self._fields)
            return result
        except ValueError as error:
            raise RequestError(f"{path} is damaged ({error}); delete it, and the run ends anew") from None

    def update(self, result: dict[str, Any]) -> dict[str, Any]:
        """Replace the result of a finished run, and then the request for it: a kill between costs a measurement."""
        write_json(self.folder / RESULT, sealed(result))
        write_text(self.folder / CONFIG, tomli_w.dumps(sealed(self.request)))
        return result

    def finish(self, weights: dict[str, Tensor], result: Mapping[str, Any]) -> None:
        """Write the student's weights and, last, the result."""
        from safetensors.torch import save

        with replacing(self.folder / WEIGHTS) as partial:
            partial.write_bytes(save(weights))
        sync(self.folder / METRICS)
        files = {name: entry(self.folder / name) for name in (WEIGHTS, METRICS)}
        write_json(self.folder / RESULT, sealed({**result, "files": files}))


def finished_weights(folder: Path) -> Path:
    """The weights of a run's student. Raises: RequestError where they are not those that were written."""
    path = folder / WEIGHTS
    if (folder / RESULT).exists():
        try:
            written = (read_result(folder).get("files") or {}).get(WEIGHTS)
        except OSError as error:
            raise RequestError(f"{folder / RESULT} cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            raise RequestError(f"{folder / RESULT} is damaged ({error}){MEND}") from None
        if written is not None:
            check_file(path, written, MEND)
    return path


def read_request(folder: Path) -> dict[str, Any]:
    """The tables of a run's config.toml. Raises: RequestError where they cannot be read, or were changed."""
    path = folder / CONFIG
    tables = load_toml(path)
    try:
        request = unsealed(tables)
        check_fields(request, dict.fromkeys(("distill", "model", "content"), (*_TABLE, *_NOTHING)))
        return request
    except ValueError as error:
        raise RequestError(f"{path} is damaged ({error}){MEND}") from None


def read_failure(folder: Path) -> str | None:
    """Why the run in a folder ended before its last step; None where it did not, or nothing is known of it."""
    if (folder / RESULT).exists():
        return None
    try:
        failure = unsealed(json.loads((folder / FAILED).read_text(encoding="utf-8")))
        check_fields(failure, {"why": _TEXT})
        return str(failure["why"])
    except (OSError, ValueError):
        return None


def read_result(folder: Path) -> dict[str, Any]:
    """A run's result.json. Raises: ValueError or OSError where it cannot be read, or was changed."""
    result = unsealed(json.loads((folder / RESULT).read_text(encoding="utf-8")))
    check_fields(result, {"files": (*_TABLE, *_NOTHING)})
    return result


def check_model(folder: Path) -> None:
    """Raises: RequestError, naming the field, for a run whose table `model` has a field of another type or lacks it."""
    path = folder / CONFIG
    request = read_request(folder)
    try:
        check_fields(request, MODEL_FIELDS)
    except ValueError as error:
        raise RequestError(f"{str(path)!r} is not the configuration of a RUN: {error}") from None


def _plain(value: Any) -> Any:
    """A value as TOML gives it back: lists for tuples, nothing for None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_leftover(file: Path) -> bool:
    """Whether a kill left this file of a run: half written, or a lock that nobody holds. Others' files stay."""
    own = (CONFIG, METRICS, CHECKPOINT, WEIGHTS, RESULT, FAILED)
    return file.name == LOCK or (file.name.endswith(PARTIAL) and file.name.startswith(own))


def _lines(metrics: Path) -> list[str]:
    return metrics.read_text(encoding="utf-8", errors="replace").splitlines()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a row that was cut off by a kill
        return float("inf")
