"""Interface of the loggers, which take numbers, pictures and tables of one training."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from dfkd.system.files import write_json

PICTURES = 20
"""Pictures of a whole training."""


@dataclass(frozen=True)
class Training:
    """The training that is logged: its name, its options, and the folder for a logger's files."""

    folder: Path
    name: str
    options: Mapping[str, Any]

    def remembered(self, logger: str, make: Callable[[], str]) -> tuple[str, bool]:
        """Return the identity that a logger gave this training, and whether an earlier command made it."""
        file = self.folder / f"{logger}.json"
        if file.exists():
            return str(json.loads(file.read_text(encoding="utf-8"))["id"]), True
        made = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(file, {"id": made})
        return made, False


class Logger(ABC):
    """One program's record of a training. It is opened with the step of its first row.

    A resumed training opens the record again. Rows of the steps before `step` exist already. Later rows are replaced or
    left as they are.
    """

    needs: ClassVar[str]
    """Module that must be installed. The extra of `dfkd` has the logger's name."""

    @abstractmethod
    def __init__(self, training: Training, step: int) -> None: ...

    @abstractmethod
    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """Log the metrics of a step."""

    @abstractmethod
    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "height width channels"]) -> None:
        """Log a picture of a step."""

    @abstractmethod
    def result(self, step: int, table: Mapping[str, Any]) -> None:
        """Log the final result."""

    @abstractmethod
    def close(self) -> None:
        """Write what is not written yet."""


def numbers(table: Mapping[str, Any]) -> dict[str, float]:
    """Return the entries of a table that are numbers."""
    return {name: float(value) for name, value in table.items() if type(value) in (int, float)}


def as_text(value: Any) -> str:
    """Format an entry of a table as text."""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
