"""A run's folder: its request, metrics, last complete checkpoint, and at the end the student and the result."""

import contextlib
import json
import pickle
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import tomli_w
import torch
from torch import nn

from dfkd.config import differences, load_toml
from dfkd.errors import RequestError
from dfkd.files import PARTIAL, current_folder, replace_folder, replacing, write_json, write_text

CONFIG, METRICS, CHECKPOINT, WEIGHTS, RESULT = (
    "config.toml",
    "metrics.jsonl",
    "checkpoint",
    "student.safetensors",
    "result.json",
)


class Run:
    """One distillation's folder. Opening it again with the same request goes on from its last checkpoint."""

    def __init__(self, folder: Path, asked: str, request: Mapping[str, Any]) -> None:
        """Create or reopen `folder`; `request` is `config.toml`, whose table `content` is what decides the result.

        `asked` is the folder's name in messages.
        Raises: RequestError where the folder holds another run, with the fields that differ, or something else.
        """
        self.folder = folder
        if folder.is_dir():  # a kill may have left a file half written
            for file in folder.glob(f"*{PARTIAL}"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        if (folder / CONFIG).exists():
            different = differences(load_toml(folder / CONFIG).get("content", {}), _plain(request["content"]))
            if different:
                raise RequestError(f"--out {asked} holds another run: {'; '.join(different)}; give another folder")
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RequestError(f"--out {asked} holds something that is no run; give another folder")
        else:
            write_text(folder / CONFIG, tomli_w.dumps(_plain(request)))

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished run. Raises: RequestError where it cannot be read."""
        path = self.folder / RESULT
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError as error:
            raise RequestError(f"{path} is damaged ({error}); delete it, and the run ends anew") from None

    def update(self, result: dict[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the result of a finished run, and what was asked for it."""
        write_text(self.folder / CONFIG, tomli_w.dumps(_plain(request)))
        write_json(self.folder / RESULT, result)
        return result

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to the metrics."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def save(self, state: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Replace the checkpoint: tensors in state.pt, and what a reader wants to know in progress.json."""
        partial = self.folder / (CHECKPOINT + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        torch.save(dict(state), partial / "state.pt")
        write_json(partial / "progress.json", progress)
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
                progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
                found = torch.load(folder / "state.pt", map_location="cpu", weights_only=True), progress
                step = progress["step"]
            except (OSError, ValueError, KeyError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
                what = str(error).partition("\n")[0] or type(error).__name__
                raise RequestError(f"{folder} is damaged ({what}); delete the run's folder and start again") from None
        if metrics.exists():
            rows = [line for line in metrics.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            write_text(metrics, "".join(row + "\n" for row in rows))
        return found

    def finish(self, student: nn.Module, result: Mapping[str, Any]) -> None:
        """Write the student and, last, the result."""
        from safetensors.torch import save_file

        tensors = {name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()}
        with replacing(self.folder / WEIGHTS) as partial:
            save_file(tensors, partial)
        write_json(self.folder / RESULT, result)


class StopRequest:
    """Whether SIGINT or SIGTERM came; a second one ends the process at once."""

    signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Hold back SIGINT and SIGTERM while the block runs, so that it can stop between two steps."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of the GPU where the run has one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # the same field, in bytes there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _plain(value: Any) -> Any:
    """A value as TOML gives it back: lists for tuples, nothing for None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a row that was cut off by a kill
        return float("inf")
