"""Relational knowledge distillation: loops over the distinct pairs and triplets, as the paper writes them."""

from itertools import permutations

import numpy as np
import pytest
import torch

from dfkd.distill.losses import RKD, rkd
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(rng):
    """Features of other widths, as far apart in places that Huber's loss is linear there."""
    return {"last": rng.normal(size=(5, 4)) ** 3}, {"last": rng.normal(size=(5, 3)) ** 3}


def huber(x):
    return x**2 / 2 if abs(x) < 1 else abs(x) - 0.5


def distances(x):
    d = {(i, j): np.sqrt(((x[i] - x[j]) ** 2).sum()) for i, j in permutations(range(len(x)), 2)}
    mean = np.mean(list(d.values()))
    return {pair: value / mean for pair, value in d.items()}


def angles(x):
    out = {}
    for i, j, k in permutations(range(len(x)), 3):
        a, b = x[i] - x[j], x[k] - x[j]
        out[i, j, k] = a @ b / np.sqrt((a @ a) * (b @ b))
    return out


def formula_of(teacher, distance=1.0, angle=2.0, name="last"):
    def matched(of, s):
        ours, theirs = of(s), of(teacher[name])
        return np.mean([huber(ours[key] - theirs[key]) for key in theirs])

    return lambda student: distance * matched(distances, student[name]) + angle * matched(angles, student[name])


@pytest.mark.parametrize("parts", [{}, {"distance": 0.0}, {"angle": 0.0}, {"distance": 3.0, "angle": 0.5}])
def test_value_and_gradient(pair, check_formula, parts):
    student, teacher = pair
    check_formula(RKD(**parts), student, teacher, formula_of(teacher, **parts))


def test_the_formula_reaches_hubers_linear_part(pair):
    student, teacher = pair
    ours, theirs = distances(student["last"]), distances(teacher["last"])
    assert max(abs(ours[key] - theirs[key]) for key in ours) > 1


def test_of_logits(pair, check_formula):
    student, teacher = ({"logits": side["last"]} for side in pair)
    loss = RKD(of="logits")
    assert (loss.taps, RKD().taps) == ((), ("last",))
    check_formula(loss, student, {"logits": teacher["logits"]}, formula_of(teacher, name="logits"))


@pytest.mark.parametrize("entries", [1, 25, 50, 74])
def test_chunks_change_nothing(pair, check_formula, monkeypatch, entries):
    student, teacher = pair
    monkeypatch.setattr(rkd, "ENTRIES", entries)
    check_formula(RKD(), student, teacher, formula_of(teacher))


def test_the_papers_weights_are_the_defaults():
    assert (RKD.weight * RKD().distance, RKD.weight * RKD().angle) == (25, 50)


def test_scale_shift_and_rotation_do_not_matter(pair, outputs, rng):
    student, teacher = pair
    once = RKD()(outputs(student), outputs(teacher)).item()
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    moved = RKD()(outputs({"last": 7 * student["last"] @ turn + 3}), outputs({"last": 0.01 * teacher["last"]}))
    assert moved.item() == pytest.approx(once)
    assert RKD()(outputs({"last": 2 * teacher["last"]}), outputs(teacher)).item() == pytest.approx(0, abs=1e-12)


def test_a_map_is_averaged(pair, check_averages_maps):
    check_averages_maps(RKD(), *pair)


def test_is_finite_where_features_are_degenerate(pair, check_survives):
    check_survives(RKD(), *pair)


@pytest.mark.parametrize("kind", ["two same", "nearly same", "one", "two", "tiny"])
def test_is_finite_in_small_batches_and_at_small_distances(kind, outputs, check_finite, rng):
    x = rng.normal(size=(6, 8))
    if kind in ("two same", "nearly same"):
        x[1] = x[0] * (1 + 1e-7 * (kind == "nearly same"))
    x = {"one": x[:1], "two": x[:2], "tiny": 1e-6 * x}.get(kind, x)
    sides = outputs({"last": x}, torch.float32, grad=True), outputs({"last": rng.normal(size=x.shape)}, torch.float32)
    # the angle at a point that is two is no direction to learn
    value = check_finite(RKD(), *sides, most=10 if "same" in kind else np.inf)
    if kind in ("one", "two"):
        assert value == pytest.approx(0, abs=1e-6)


def test_coincident_samples_of_the_teacher_teach_no_angle(outputs, rng):
    """Where the teacher cannot tell two samples apart, the student's angles there are free."""
    teacher = rng.normal(size=(3, 4))
    teacher[1] = teacher[0]
    student = rng.normal(size=(3, 4))
    loss = RKD(distance=0.0)(outputs({"last": student}), outputs({"last": teacher})).item()
    kept = [(0, 2, 1), (1, 2, 0)]  # at sample 2, whose sides have a length
    expected = sum(huber(angles(student)[key] - 1) for key in kept) / 6
    assert loss == pytest.approx(2 * expected)


def test_wrong_options_and_features_are_refused(rng, outputs):
    with pytest.raises(RequestError, match=r"^angle=-1 is not"):
        RKD(angle=-1.0)
    with pytest.raises(RequestError, match=r"^distance=-0\.5 is not"):
        RKD(distance=-0.5)
    with pytest.raises(RequestError, match="nothing to learn"):
        RKD(0.0, 0.0)
    odd = outputs({"last": rng.normal(size=(2, 3, 4))})
    with pytest.raises(RequestError, match=r"^the feature 'last'"):
        RKD()(odd, odd)


def test_far_logits_are_finite(extreme, check_finite):
    check_finite(RKD(of="logits"), *extreme)
