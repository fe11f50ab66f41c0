"""A run's folder: its request, metrics, last complete checkpoint, and at the end the student and the result."""

import contextlib
import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
import torch
from torch import Tensor

from dfkd.config.tables import differences
from dfkd.formats.kept_weights import KEPT, kept_files, remove_half_written
from dfkd.formats.run_records import (
    CONFIG,
    FAILED,
    RESULT,
    RUN_FORMAT,
    WEIGHTS,
    Checkpoint,
    parse_progress,
    read_failure,
    read_request,
    read_result,
)
from dfkd.system.checksums import check_file, entry, sealed
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

METRICS, CHECKPOINT, LOGS = "metrics.jsonl", "checkpoint", "logs"
READY = f"{CHECKPOINT}.next"
"""A checkpoint that is complete, and waits until those of other runs are."""
STATE, PROGRESS = "state.pt", "progress.json"
"""The files of a checkpoint."""
R = TypeVar("R")
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, RecursionError, pickle.UnpicklingError)


class Progress:
    """What is written down while something trains: rows of metrics, and the last complete checkpoint."""

    def __init__(self, folder: Path, hint: str) -> None:
        """`hint` ends the message of a damaged checkpoint."""
        self.folder, self._hint = folder, hint
        self.follower: Callable[[Mapping[str, Any]], None] | None = None
        """Is told every row, after it was written."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to the metrics."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.follower is not None:
            self.follower(row)

    def save(self, state: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Replace the checkpoint: tensors in state.pt, and what a reader wants to know in progress.json."""
        replace_folder(self._written(state, progress), self.folder / CHECKPOINT)

    def make_ready(self, state: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Write a checkpoint beside the last one, for `publish`: of several runs each has it before any goes on."""
        replace_folder(self._written(state, progress), self.folder / READY)

    def publish(self) -> None:
        """Replace the checkpoint by the one that is ready."""
        replace_folder(self.folder / READY, self.folder / CHECKPOINT)

    def step(self, name: str = CHECKPOINT) -> int | None:
        """That of the last checkpoint, or of the one that is `READY`; None where there is none that can be read."""
        folder = current_folder(self.folder / name)
        try:
            return None if folder is None else parse_progress((folder / PROGRESS).read_text(encoding="utf-8")).step
        except _UNREADABLE:
            return None

    def forget_ready(self) -> None:
        """Remove a checkpoint that is ready, and was not published."""
        for folder in self.folder.glob(f"{READY}*"):
            shutil.rmtree(folder)

    def _written(self, state: Mapping[str, Any], progress: Mapping[str, Any]) -> Path:
        """A checkpoint under a temporary name."""
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
        table = {"format": RUN_FORMAT, **progress, "state": entry(partial / STATE)}
        write_json(partial / PROGRESS, sealed(table))
        return partial

    def load(self) -> tuple[dict[str, Any], Checkpoint] | None:
        """The last complete checkpoint's state and progress; rows of metrics past its step are dropped.

        Raises: RequestError for a damaged checkpoint.
        """
        folder = current_folder(self.folder / CHECKPOINT)
        metrics = self.folder / METRICS
        step, found = 0, None
        if folder is not None:
            try:
                progress = parse_progress((folder / PROGRESS).read_text(encoding="utf-8"))
                check_file(folder / STATE, progress.state)
                found = torch.load(folder / STATE, map_location="cpu", weights_only=True), progress
                step = progress.step
            except (RequestError, *_UNREADABLE) as error:
                what = str(error).partition("\n")[0] or type(error).__name__
                raise RequestError(f"{folder} is damaged ({what}){self._hint}") from None
        if metrics.exists():
            rows = [line for line in _lines(metrics) if _step(line) <= step]
            write_text(metrics, "".join(row + "\n" for row in rows))
        return found


class Run(Progress):
    """One distillation's folder. Opening it again with the same request goes on from its last checkpoint."""

    def __init__(self, folder: Path, shown: str, request: Mapping[str, Any]) -> None:
        """Name a new run or one that was begun; `request` is `config.toml`, whose table `content` decides the result.

        `shown` is the folder's name in messages. Nothing is written before `writing`.
        Raises: RequestError where the folder holds another run, with the fields that differ, or something else.
        """
        super().__init__(folder, "; delete it, and the run starts anew")
        self.shown, self.request = shown, {"format": RUN_FORMAT, **_plain(request)}
        self._check()

    def _check(self) -> str | None:
        """Why another request, which this one replaces, failed. Raises: RequestError as `__init__`."""
        folder = self.folder
        # before the question for the first file: another command may be writing it
        others = folder.is_dir() and any(not _is_leftover(file) for file in folder.iterdir())
        if (folder / CONFIG).exists():
            different = differences(read_request(folder).content, self.request["content"])
            if different and (failed := read_failure(folder)) is not None:
                return failed
            if different:
                raise RequestError(f"--out {self.shown} holds another run: {'; '.join(different)}; give another folder")
        elif others or (folder.exists() and not folder.is_dir()):
            why = "holds files that are not a run" if folder.is_dir() else "is a file"
            raise RequestError(f"--out {self.shown} {why}; give another folder")
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
            remove_half_written(self.folder)
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
        for name in (LOGS, KEPT):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def tidy(self) -> None:
        """Remove what a command has left that was killed just after its last step, if nobody is writing."""
        old = self.folder / f"{CHECKPOINT}.old"
        if old.exists() or any(_is_leftover(file) for file in self.folder.iterdir()):
            with contextlib.suppress(RequestError, OSError), self.writing():
                pass

    def result(self, kind: type[R]) -> R | None:
        """The result of a finished run. Raises: RequestError where it cannot be read."""
        if not (self.folder / RESULT).exists():
            return None
        return read_result(self.folder, kind, "; delete it, and the run ends anew")

    def update(self, result: Mapping[str, Any]) -> None:
        """Replace the result of a finished run, and then the request for it: a kill between costs a measurement."""
        write_json(self.folder / RESULT, sealed(result))
        write_text(self.folder / CONFIG, tomli_w.dumps(sealed(self.request)))

    def finish(self, weights: dict[str, Tensor], result: Mapping[str, Any]) -> None:
        """Write the student's weights and, last, the result."""
        from safetensors.torch import save

        with replacing(self.folder / WEIGHTS) as partial:
            partial.write_bytes(save(weights))
        sync(self.folder / METRICS)
        kept = (f"{KEPT}/{file.name}" for file in kept_files(self.folder).values())
        files = {name: entry(self.folder / name) for name in (WEIGHTS, METRICS, *kept)}
        write_json(self.folder / RESULT, sealed({**result, "files": files}))


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
