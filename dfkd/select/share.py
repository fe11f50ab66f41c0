"""The share of a pool that one of several commands scores: `--part K/N`, or a task of a SLURM array job."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dfkd.system.errors import RequestError

SLURM = "slurm"
_ARRAY = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class PoolShare:
    """The `number`-th of `count` equal shares of a pool's parts: the work of one of several commands."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> "PoolShare":
        """Parse K/N, or read the variables of an array job. Raises: RequestError for another text."""
        if text == SLURM:
            return cls(*_of_array(environment))
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        share = cls(*map(int, match.groups())) if match else cls(0)
        if not 1 <= share.number <= share.count:
            raise RequestError(f"--part {text!r} is not K/N with K from 1 to N, such as 1/4, and not {SLURM}")
        return share

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def parts(self, total: int) -> range:
        """Return the numbers of the share's parts, of `total`. With more shares than parts, some are empty."""
        return range((self.number - 1) * total // self.count, self.number * total // self.count)


WHOLE = PoolShare()
"""The whole pool as one share."""


def _of_array(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return the number of this task, from 1, and the number of tasks.

    The indices of an array may begin anywhere, in steps of any size.
    Raises: RequestError outside of an array job, or if the indices are not a whole range: some parts would have no
    task.
    """
    number, count, first, last, step = (
        _variable(environment, name, default)
        for name, default in (("ID", None), ("COUNT", None), ("MIN", "0"), ("MAX", None), ("STEP", "1"))
    )
    if step < 1 or first + (count - 1) * step != last or (number - first) % step or not first <= number <= last:
        raise RequestError(
            f"--part {SLURM}: task {number} of {count} tasks from {first} to {last} in steps of {step} is not in a "
            "complete range; submit one, such as sbatch --array=0-15"
        )
    return (number - first) // step + 1, count


def _variable(environment: Mapping[str, str], name: str, default: str | None) -> int:
    text = environment.get(_ARRAY + name, default)
    if text is None:
        raise RequestError(
            f"--part {SLURM}: {_ARRAY}{name} is not set; submit the command with sbatch --array=0-15, or give K/N"
        )
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise RequestError(f"--part {SLURM}: {_ARRAY}{name}={text!r} is not a whole number; SLURM sets it")
    return int(text)
