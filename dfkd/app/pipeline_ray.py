"""A pipeline's stages as tasks of Ray. A stage begins when its inputs exist and its cores and GPUs are free.

Stages write their folders themselves, so the folders must be on a file system that all machines share.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfkd.app.failures import Failure, without
from dfkd.app.pipeline_file import StageConfig, needs
from dfkd.config.stage_table import stage_of
from dfkd.system.console import printing, say
from dfkd.system.errors import RequestError, first_line
from dfkd.system.locks import Busy
from dfkd.system.ray_session import RESTARTS, cluster_resources, connected, environment
from dfkd.system.signals import GRACE, Interrupted, handled, stop_request

_BUSY = "another command is at it"
_LATER = 1.0
"""Seconds until a stage that another command runs is tried again."""


def run_on_ray(stages: Sequence[StageConfig], cpus: float, gpus: float | None) -> list[Failure]:
    """Run every stage, each with `cpus` cores and `gpus` GPUs (None: one GPU if there is one).

    Returns: the failed stages, and the stages that need one of them. Raises: RequestError if this machine has too few
    and there is no cluster, and Interrupted after a signal.
    """
    left, failures = dict(enumerate(stages, 1)), list[Failure]()
    running: dict[Any, tuple[int, float]] = {}
    with connected() as ray, stop_request() as stop:
        task = ray.remote(_run).options(max_retries=RESTARTS, **_resources(ray, cpus, gpus), **environment())
        while left:
            begun = {number for number, _ in running.values()}
            for number, stage in left.items():
                if number not in begun and not needs(stage, left.values()):
                    running[task.remote(stage, os.getcwd())] = number, time.monotonic()
            done, _ = ray.wait(list(running), timeout=1)
            if stop.signal is not None:
                for answer in running:
                    ray.cancel(answer)
                ray.wait(list(running), num_returns=len(running), timeout=GRACE)
                raise Interrupted(stop.signal, "what is complete is kept; give the same command again to resume")
            for answer in done:
                number, began = running.pop(answer)
                stage = left[number]
                error = _error(ray, answer)
                if isinstance(error, Busy):
                    time.sleep(_LATER)
                    continue
                if isinstance(error, OSError):  # a full disk or a missing folder concerns all stages
                    raise error
                if error is not None:
                    failures.append(Failure.of(stage, error))
                    failures += without(left, failures[-1])
                else:
                    seconds = time.monotonic() - began
                    title = f"[{number}/{len(stages)}] {stage_of(stage).name} {Path(stage.out).name}"
                    say(f"{title}: {seconds:.0f} s")
                left.pop(number)
    return failures


def _resources(ray: Any, cpus: float, gpus: float | None) -> dict[str, float]:
    """Return what Ray reserves for a stage. Raises: RequestError if this machine has less; a cluster may grow."""
    there = cluster_resources(ray)
    wanted = {"CPU": cpus, "GPU": min(1.0, there["GPU"]) if gpus is None else gpus}
    for name, number in wanted.items():
        if "RAY_ADDRESS" not in os.environ and number > there[name]:
            raise RequestError(
                f"--{name.lower()}s-per-stage {number:g}: this machine has {there[name]:g} for Ray; give a smaller "
                "number"
            )
    return {"num_cpus": wanted["CPU"], "num_gpus": wanted["GPU"]}


def _run(stage: StageConfig, folder: str) -> None:
    """Run one stage, in a process of Ray."""
    os.chdir(folder)  # paths are relative to the command's folder
    with printing(quiet=True), handled():
        try:
            stage_of(stage).run(stage)
        except Busy:
            raise Busy(_BUSY) from None
        except RequestError as error:  # in a form that can be pickled
            raise RequestError(str(error)) from None


def _error(ray: Any, answer: Any) -> Exception | None:
    """Return the exception of a stage, or None."""
    try:
        ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        known = isinstance(error.cause, (RequestError, OSError))
        cause: Exception = error.cause
        return cause if known else error
    except ray.exceptions.RayError as error:  # Ray has used up its retries
        return RequestError(f"its process has ended {RESTARTS + 1} times: {first_line(error)}")
    return None
