"""Ranges of numbers that a parameter or an option allows."""

import math
from dataclasses import dataclass

from dfkd.system.errors import RequestError


@dataclass(frozen=True)
class Range:
    """Finite numbers within bounds.

    `Annotated[float, Range(above=0)]` declares it for a parameter. A `NAME:key=value` is checked when it is parsed.

    Example:
        >>> Range(above=0, most=1).holds(1)
        True
        >>> str(Range(above=0, most=1))
        'above 0 and at most 1'
    """

    least: int | float | None = None
    """Smallest allowed number."""
    above: int | float | None = None
    """Exclusive lower bound."""
    most: int | float | None = None
    """Largest allowed number."""
    below: int | float | None = None
    """Exclusive upper bound."""

    def holds(self, value: int | float) -> bool:
        """Return whether a number is within the bounds.

        Args:
            value: The number.

        Returns:
            True for a finite number within the bounds. False for infinity and NaN.
        """
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def check(self, **values: int | float) -> None:
        """Raise RequestError if a number is not within the bounds.

        Each keyword is the name of a parameter, with the number as its value.

        Raises:
            RequestError: A number is not within the bounds. The message names its parameter.
        """
        for name, value in values.items():
            if not self.holds(value):
                unbounded = self.most is None and self.below is None
                finite = " and finite" if unbounded and not math.isfinite(value) else ""
                raise RequestError(f"{name}={value:g} is not {self}{finite}")

    def __str__(self) -> str:
        """Return the bounds in words, such as `above 0 and at most 1`."""
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {bound}" for word, bound in words.items() if bound is not None)


SHARE = Range(above=0, most=1)
"""Range of a fraction that is not 0."""


def check_above(floor: int | float = 0, /, **values: int | float) -> None:
    """Raise RequestError if one of the `values` is not above `floor`, or not finite."""
    Range(above=floor).check(**values)


def check_at_least(floor: int | float = 0, /, **values: int | float) -> None:
    """Raise RequestError if one of the `values` is below `floor`, or not finite."""
    Range(least=floor).check(**values)
