"""What the numbers of a NAME:key=value may be."""

import math

from dfkd.system.errors import RequestError


def check_above(name: str, floor: float | int = 0, **values: float | int) -> None:
    """Raises: RequestError for one of the `values` that is not above `floor`, or not finite."""
    for key, value in values.items():
        if not floor < value < math.inf:
            raise RequestError(f"{name}:{key}={value:g} is not above {floor:g}{_and_finite(value)}")


def check_at_least(name: str, floor: float | int = 0, **values: float | int) -> None:
    """Raises: RequestError for one of the `values` that is below `floor`, or not finite."""
    for key, value in values.items():
        if not floor <= value < math.inf:
            raise RequestError(f"{name}:{key}={value:g} is not at least {floor:g}{_and_finite(value)}")


def _and_finite(value: float | int) -> str:
    return "" if math.isfinite(value) else " and finite"
