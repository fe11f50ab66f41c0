"""Failed stages of a pipeline, the stages that need them, and the error that ends the command."""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dfkd.app.pipeline_file import StageConfig, needs
from dfkd.system.console import say
from dfkd.system.errors import RequestError


@dataclass(frozen=True)
class Failure:
    """A stage that has failed, or that could not begin because a stage that it needs has failed."""

    stage: StageConfig
    why: str
    defect: Exception | None = None
    """The exception, if the request is not at fault."""
    needs: bool = False
    """Whether the stage could not begin because one that it needs has failed."""

    @classmethod
    def of(cls, stage: StageConfig, error: Exception) -> "Failure":
        """Return the failure of a stage that raised `error`, and print it."""
        defect = None if isinstance(error, RequestError) else error
        failure = cls(stage, f"{type(error).__name__}: {error}" if defect else str(error), defect)
        say(f"{failure.name} failed: {failure.why}")
        if defect:
            traceback.print_exception(defect)
        return failure

    @property
    def name(self) -> str:
        """Name of the stage's folder."""
        return Path(self.stage.out).name


def without(left: dict[int, StageConfig], failed: Failure) -> list[Failure]:
    """Remove the stages that need the failed one, directly or through others. Returns their failures."""
    found: list[Failure] = []
    gone = [failed.stage]
    while lost := [n for n, stage in left.items() if stage not in gone and needs(stage, gone)]:
        for number in lost:
            gone.append(left.pop(number))
            found.append(Failure(gone[-1], f"it needs {failed.name}, which failed", needs=True))
    return found


def raise_all(failures: Sequence[Failure], stages: int) -> NoReturn:
    """End the command with all failures. Raises: the first defect, else RequestError."""
    for failure in failures:
        if failure.defect is not None:
            raise failure.defect
    failed = "; ".join(f"{failure.name}: {failure.why}" for failure in failures if not failure.needs)
    waiting = ", ".join(failure.name for failure in failures if failure.needs)
    more = f"; {waiting} need what failed" if waiting else ""
    raise RequestError(
        f"of {stages} stages {stages - len(failures)} are complete; failed: {failed}{more}. Change the file and give "
        "the same command again: only these run again"
    )
