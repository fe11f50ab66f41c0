"""Folder of a run: its request, metrics, last complete checkpoint and, at the end, student and result."""

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
from dfkd.formats.kept_weights import kept_files, remove_half_written
from dfkd.formats.run_records import (
    CHECKPOINT,
    CONFIG,
    FAILED,
    KEPT,
    LOGS,
    METRICS,
    PROGRESS,
    RESULT,
    RUN_FORMAT,
    STATE,
    WEIGHTS,
    Checkpoint,
    parse_progress,
    read_failure,
    read_request,
    read_result,
)
from dfkd.system.checksums import check_file, entry, sealed
from dfkd.system.console import say
from dfkd.system.errors import RequestError, first_line
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

READY = f"{CHECKPOINT}.next"
"""Name of a complete checkpoint that waits for the checkpoints of other runs."""
R = TypeVar("R")
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, RecursionError, pickle.UnpicklingError)


class Progress:
    """Record of a training: rows of metrics, and the last complete checkpoint."""

    def __init__(self, folder: Path, hint: str) -> None:
        """Set the folder. `hint` ends the error message about a damaged checkpoint."""
        self.folder, self._hint = folder, hint
        self.follower: Callable[[Mapping[str, Any]], None] | None = None
        """Function that receives every row after it was written."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to the metrics."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.follower is not None:
            self.follower(row)

    def save(self, state: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Replace the checkpoint by one with tensors in state.pt and the progress in progress.json."""
        replace_folder(self._written(state, progress), self.folder / CHECKPOINT)

    def make_ready(self, state: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Write a checkpoint beside the last one, for `publish`.

        Of several runs, each writes its checkpoint before any of them continues.
        """
        replace_folder(self._written(state, progress), self.folder / READY)

    def publish(self) -> None:
        """Replace the checkpoint by the one that `make_ready` wrote."""
        replace_folder(self.folder / READY, self.folder / CHECKPOINT)

    def step(self, name: str = CHECKPOINT) -> int | None:
        """Return the step of a checkpoint: the last one, or the one called `READY`. None if it cannot be read."""
        folder = current_folder(self.folder / name)
        try:
            return None if folder is None else parse_progress((folder / PROGRESS).read_text(encoding="utf-8")).step
        except _UNREADABLE:
            return None

    def forget_ready(self) -> None:
        """Remove a checkpoint that `make_ready` wrote and `publish` did not use."""
        for folder in self.folder.glob(f"{READY}*"):
            shutil.rmtree(folder)

    def _written(self, state: Mapping[str, Any], progress: Mapping[str, Any]) -> Path:
        """Write a checkpoint under a temporary name, and return the path."""
        if (self.folder / METRICS).exists():
            sync(self.folder / METRICS)  # a resumed run needs the rows up to this step
        partial = self.folder / (CHECKPOINT + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        # via memory, because torch's writer reports a full disk as an error about positions
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        with replacing(partial / STATE) as file:
            file.write_bytes(buffer.getbuffer())
        table = {"format": RUN_FORMAT, **progress, "state": entry(partial / STATE)}
        write_json(partial / PROGRESS, sealed(table))
        return partial

    def load(self) -> tuple[dict[str, Any], Checkpoint] | None:
        """Return state and progress of the last complete checkpoint, or None.

        Rows of metrics after the checkpoint's step are dropped.
        Raises: RequestError if the checkpoint is damaged.
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
                raise RequestError(f"{folder} is damaged ({first_line(error)}){self._hint}") from None
        if metrics.exists():
            rows = [line for line in _lines(metrics) if _step(line) <= step]
            write_text(metrics, "".join(row + "\n" for row in rows))
        return found


class Run(Progress):
    """Folder of one distillation. Opening it again with the same request continues from the last checkpoint."""

    def __init__(self, folder: Path, shown: str, request: Mapping[str, Any]) -> None:
        """Open the folder of a new or unfinished run. Nothing is written before `writing`.

        `shown` is the folder's name in messages. `request` is the content of `config.toml`, whose table `content`
        decides the result.
        Raises: RequestError if the folder holds another run or other files. The message names the fields that differ.
        """
        super().__init__(folder, "; delete it, and the run starts anew")
        self.shown, self.request = shown, {"format": RUN_FORMAT, **_plain(request)}
        self._check()

    def _check(self) -> str | None:
        """Return why another request failed in this folder, or None. The present request then replaces the failed one.

        Raises: RequestError as `__init__`.
        """
        folder = self.folder
        # before the check for CONFIG, which another command may be writing
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
        """Lock the folder against other commands while the block runs, and remove partial files of a killed command.

        If the block ends with a RequestError before there is a result, the error is recorded in the folder.
        Raises: RequestError if another command is writing the folder.
        """
        with locked(self.folder, f"--out {self.shown}"):
            failed = self._check()  # another command may have changed the folder in the meantime
            if failed is not None:
                say(f"{self.shown}: another request failed there ({failed}); the run starts anew")
                self._forget()
            for file in self.folder.iterdir():
                if _is_leftover(file) and file.name != LOCK:
                    shutil.rmtree(file) if file.is_dir() else file.unlink()
            remove_half_written(self.folder)
            restore_folder(self.folder / CHECKPOINT)
            if not (self.folder / RESULT).exists():  # an unfinished run is finished with the present request
                write_text(self.folder / CONFIG, tomli_w.dumps(sealed(self.request)))
            (self.folder / FAILED).unlink(missing_ok=True)
            try:
                yield
            except RequestError as error:
                if not (self.folder / RESULT).exists():
                    with contextlib.suppress(OSError):  # the first error is more important
                        write_json(self.folder / FAILED, sealed({"why": str(error)}))
                raise

    def _forget(self) -> None:
        """Remove files of another request. Its failure and its request are replaced last."""
        for folder in self.folder.glob(f"{CHECKPOINT}*"):
            shutil.rmtree(folder)
        (self.folder / METRICS).unlink(missing_ok=True)
        for name in (LOGS, KEPT):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def tidy(self) -> None:
        """Remove files that a command left when killed after its last step, unless another command is writing."""
        old = self.folder / f"{CHECKPOINT}.old"
        if old.exists() or any(_is_leftover(file) for file in self.folder.iterdir()):
            with contextlib.suppress(RequestError, OSError), self.writing():
                pass

    def result(self, kind: type[R]) -> R | None:
        """Return the result of a finished run, else None. Raises: RequestError if the result cannot be read."""
        if not (self.folder / RESULT).exists():
            return None
        return read_result(self.folder, kind, "; delete it, and the run ends anew")

    def update(self, result: Mapping[str, Any]) -> None:
        """Replace the result and then the request of a finished run. A kill in between costs one evaluation."""
        write_json(self.folder / RESULT, sealed(result))
        write_text(self.folder / CONFIG, tomli_w.dumps(sealed(self.request)))

    def finish(self, weights: dict[str, Tensor], result: Mapping[str, Any]) -> None:
        """Write the student's weights and then the result, the last file."""
        from safetensors.torch import save

        with replacing(self.folder / WEIGHTS) as partial:
            partial.write_bytes(save(weights))
        sync(self.folder / METRICS)
        kept = (f"{KEPT}/{file.name}" for file in kept_files(self.folder).values())
        files = {name: entry(self.folder / name) for name in (WEIGHTS, METRICS, *kept)}
        write_json(self.folder / RESULT, sealed({**result, "files": files}))


def _plain(value: Any) -> Any:
    """Return a value as TOML stores it: lists for tuples, and no entry for None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_leftover(file: Path) -> bool:
    """Return whether a file is left over from a killed command: a partial file of a run, or an unused lock.

    Files of other names stay.
    """
    own = (CONFIG, METRICS, CHECKPOINT, WEIGHTS, RESULT, FAILED)
    return file.name == LOCK or (file.name.endswith(PARTIAL) and file.name.startswith(own))


def _lines(metrics: Path) -> list[str]:
    return metrics.read_text(encoding="utf-8", errors="replace").splitlines()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a row cut short by a kill
        return float("inf")
