"""Scoring by workers of Ray: each opens the teacher and the pool once, and gets one part after the other.

The scores of a part are a file in the cache folder, as without Ray. Ray transfers the numbers of the parts. It
transfers the files too if a worker does not see the folder of this machine.
"""

import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dfkd.config import SelectConfig
from dfkd.config.stage_table import stage_of
from dfkd.config.stages.shared import Precision
from dfkd.config.tables import differences
from dfkd.models.several import given_teacher
from dfkd.select.pool_filter import Adapted
from dfkd.select.request import Request, check, resolve, scorable
from dfkd.select.score import PartScorer
from dfkd.select.stored_scores import features_file, scores_file
from dfkd.system.console import printing, say
from dfkd.system.errors import RequestError, first_line
from dfkd.system.files import replacing, request_folder
from dfkd.system.ray_session import RESTARTS, cluster_resources, connected, environment
from dfkd.system.signals import Interrupted, stop_request

_PATIENCE = 30
"""Seconds without a result after which an idle worker also scores a part that another worker was given."""


@dataclass(frozen=True)
class RayScorer:
    """A scorer of parts by workers of Ray."""

    request: Request
    adapted: Adapted | None
    scoring: dict[str, Any]
    folder: Path

    def __call__(self, todo: Sequence[int], advance: Callable[[int], None]) -> Generator[dict[int, str], None, None]:
        """Score the parts `todo`, and yield for each why images could not be read.

        If a worker ends, its next start or another worker scores the part again. After a machine is lost, its workers
        start again only where there is room. Other workers then also score their parts.
        Raises: RequestError if a worker refuses the request, and if all workers have ended. Interrupted after SIGINT or
        SIGTERM.
        """
        with connected() as ray, stop_request() as stop:
            left, idle, waited, finished, twice = deque(todo), list[Any](), 0, set[int](), set[int]()
            running: dict[Any, tuple[Any, int | None]] = {}
            before = {part: _version(scores_file(self.folder, part)) for part in todo}
            for worker in self._workers(ray, len(todo)):
                running[worker.open.remote()] = (worker, None)
            while len(finished) < len(todo):
                while left and idle:
                    worker, number = idle.pop(), left.popleft()
                    running[worker.score.remote(number)] = (worker, number)
                done, _ = ray.wait(list(running), timeout=1)
                if stop.signal is not None:
                    raise Interrupted(stop.signal, "the parts so far are kept; give the same command again to resume")
                waited = 0 if done else waited + 1
                if waited == _PATIENCE and all(part is None for _, part in running.values()):
                    say(f"no worker has begun after {_PATIENCE} s; the cluster has {cluster_resources(ray)}: waiting")
                if waited >= _PATIENCE and idle and not left:
                    left.extend(sorted({part for _, part in running.values() if part is not None} - finished - twice))
                    twice.update(left)
                for answer in done:
                    worker, part = running.pop(answer)
                    try:
                        rows, problems = ray.get(answer)
                        if part is not None:
                            self._fetch(ray, worker, part, before[part])
                    except ray.exceptions.RayActorError as error:
                        left.extendleft([] if part is None or part in finished else [part])
                        say(f"a worker has ended and is not started again: {first_line(error)}")
                        if not running and not idle:
                            raise RequestError(
                                "every worker of Ray has ended; the same command continues from what was scored"
                            ) from error
                        continue
                    except ray.exceptions.RayTaskError as error:
                        raise _refused(error) from error
                    idle.append(worker)
                    if part is not None and part not in finished:
                        finished.add(part)
                        advance(rows)
                        yield problems

    def _workers(self, ray: Any, parts: int) -> list[Any]:
        """Create the workers, which Ray starts as soon as there is room.

        Raises: RequestError if there is no room for a worker.
        """
        config, place = self.request.config, self.request.place
        on_gpu = place.device.type == "cuda"
        gpus = float(on_gpu) if config.gpus_per_worker is None else config.gpus_per_worker
        if on_gpu != (gpus > 0):
            raise RequestError(
                f"--gpus-per-worker {gpus:g} does not fit --device {place.device.type}; give --device "
                f"{'cpu' if on_gpu else 'cuda'}, or another number"
            )
        room = cluster_resources(ray)["GPU"] / gpus if gpus else cluster_resources(ray)["CPU"]
        if "RAY_ADDRESS" not in os.environ and room < 1:  # an existing cluster may grow
            raise RequestError(
                f"--gpus-per-worker {gpus:g}: this machine has {cluster_resources(ray)['GPU']:g} for Ray; give a "
                "smaller number"
            )
        precision: Precision = "bf16" if place.dtype == torch.bfloat16 else "fp32"
        given = replace(config, device=place.device.type, precision=precision)
        worker = ray.remote(_Worker).options(
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
            **environment(),
        )
        count = min(parts, config.workers or max(1, int(room)))
        return [worker.remote(given, self.adapted, self.scoring, os.getcwd()) for _ in range(count)]

    def _fetch(self, ray: Any, worker: Any, part: int, before: tuple[int, int] | None) -> None:
        """Copy the files of a part here, from a worker that does not see the folder of this machine.

        A file that is the one from `before` the scoring is damaged, or has no features beside it.
        """
        if _version(scores_file(self.folder, part)) in (None, before):
            for name, content in ray.get(worker.files.remote(part)).items():
                with replacing(self.folder / name) as partial:
                    partial.write_bytes(content)


class _Worker:
    """One of several processes that score. It opens teacher and pool itself.

    The worker must compute the same scores as the command would.
    """

    def __init__(self, config: SelectConfig, adapted: Adapted | None, scoring: dict[str, Any], folder: str) -> None:
        self._given = config, adapted, scoring, folder
        self._scorer: PartScorer | None = None

    def open(self) -> tuple[int, dict[int, str]]:
        """Open the teacher and the pool. Returns what `score` does, for no images."""
        with printing(quiet=True):
            self._opened()
        return 0, {}

    def score(self, part: int) -> tuple[int, dict[int, str]]:
        """Score a part. Returns the number of its images, and why some could not be read."""
        counted: list[int] = []
        with printing(quiet=True):
            (problems,) = self._opened()([part], counted.append)
        return sum(counted), problems

    def files(self, part: int) -> dict[str, bytes]:
        """Return the files of a part by name. The scores come last, because they make the part complete."""
        scorer = self._opened()
        if not scores_file(scorer.folder, part).exists():  # the files were on a machine that is gone
            self.score(part)
        files = [features_file(scorer.folder, part, scorer.tap)] if scorer.tap else []
        return {file.name: file.read_bytes() for file in (*files, scores_file(scorer.folder, part))}

    def _opened(self) -> PartScorer:
        if self._scorer is None:
            config, adapted, scoring, folder = self._given
            try:
                if os.path.isdir(folder):  # relative paths are those of the command
                    os.chdir(folder)
                self._scorer = stage_of(config).within(config, self._open, config, adapted, scoring)
            except RequestError as error:  # in a form that Ray can send
                raise RequestError(f"a worker on {socket.gethostname()}: {error}") from None
        return self._scorer

    def _open(self, config: SelectConfig, adapted: Adapted | None, expected: dict[str, Any]) -> PartScorer:
        request = resolve(config, check(config), given_teacher(config.teacher, config.mixing), config.pool)
        teacher, pool, scoring = scorable(request, adapted)
        if different := differences(expected, scoring):
            raise RequestError(f"it would not compute the same scores: {'; '.join(different)}")
        return PartScorer(teacher, pool, request_folder("scores", scoring), config.batch_size, request.stored_tap)


def _version(file: Path) -> tuple[int, int] | None:
    """Return what differs after a file is replaced, or None for a missing file."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _refused(error: Any) -> Exception:
    """Return the exception of this command for a worker's error."""
    cause = error.cause
    return RequestError(str(cause)) if isinstance(cause, RequestError) else error
