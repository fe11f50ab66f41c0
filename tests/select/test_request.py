"""What a request to select becomes."""

import pytest

from dfkd.select.request import short


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("random", "random"),
        ("statistics:weight=0.0", "statistics"),
        ("threshold:gamma=0.7,draw=confidence", "threshold"),
        ("threshold:gamma=0.5,draw=confidence", "threshold:gamma=0.5"),
        ("own.near:center=0.5", "own.near:center=0.5"),
        ("of_another_version:weight=1", "of_another_version:weight=1"),
    ],
)
def test_short__is_a_method_without_its_defaults(method: str, name: str) -> None:
    assert short(method) == name
