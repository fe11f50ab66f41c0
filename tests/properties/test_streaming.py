"""Choosing while scores are read gives what choosing in memory gives."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dfkd.select import methods
from dfkd.select.choose import choose
from dfkd.select.methods import ImageScores, Traits
from dfkd.select.streaming import choose_streaming
from dfkd.system.errors import RequestError

NAN = float("nan")
numbers = st.sampled_from([0.0, -0.0, 0.25, 0.5, 0.5000001, 1.0, NAN, np.inf])
options = st.sampled_from(
    [
        ("confidence", {}),
        ("entropy", {}),
        ("threshold", {"gamma": 0.4, "draw": "confidence"}),
        ("threshold", {"gamma": 0.07, "draw": "entropy"}),
        ("threshold", {"gamma": 1.0, "draw": "entropy"}),
        ("statistics", {"weight": 0.0}),
        ("statistics", {"weight": 2.0}),
    ]
)


@st.composite
def pools(draw):
    rows = draw(st.integers(1, 40))
    some = st.lists(numbers, min_size=rows, max_size=rows)
    confidence, entropy, distance = (np.array(draw(some), np.float32) for _ in range(3))
    confidence[confidence == 0] = 0.125  # the largest of the probabilities
    prediction = np.array(draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows)), np.int32)
    readable = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    return ImageScores(confidence, entropy, prediction, distance), readable


def both(in_parts, scores, readable, name, given, size, **more):
    """What both ways choose, or refuse."""
    method, balance = getattr(methods, name), more.pop("balance")
    found = []
    with np.errstate(all="ignore"):
        for way in (
            lambda: choose(
                scores, readable, lambda s, rng: method(s, rng, **given), features=lambda rows: rows, balance=balance,
                **more,
            ),
            lambda: choose_streaming(
                in_parts(scores, readable, size), len(readable), Traits.of(method).scale(**given),
                groups=5 if balance == "class" else None, **more,
            ),
        ):  # fmt: skip
            try:
                found.append(way())
            except RequestError as error:
                found.append(str(error))
    return found


@settings(max_examples=40)
@given(
    pools(),
    options,
    st.sampled_from(["none", "class"]),
    st.one_of(st.none(), st.integers(1, 40)),
    st.sampled_from([None, 1.0, 1.5]),
    st.sampled_from([9, 40]),
)
def test_choose_streaming__chooses_what_choose_does(in_parts, pool, method, balance, count, reach, size):
    known, streamed = both(in_parts, *pool, *method, size, balance=balance, count=count, seed=0, reach=reach)
    if isinstance(known, str):
        assert streamed == known
        return
    assert streamed.reasons.tolist() == known.reasons.tolist()
    assert (streamed.threshold, streamed.admitted) == (known.threshold, known.admitted)
