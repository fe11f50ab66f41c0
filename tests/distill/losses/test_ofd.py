"""Overhaul of feature distillation: margin ReLU, partial distance, and the margins' memory."""

import numpy as np
import pytest
import torch

from dfkd.distill.losses import OFD
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(normal):
    """Two stages: one wider and larger on the teacher's side, one of equal width and smaller there."""
    return normal({"pre1": (3, 2, 3, 3), "pre2": (3, 3, 3, 3)}, {"pre1": (3, 3, 4, 4), "pre2": (3, 3, 2, 2)})


def margins_of(batches):
    """The mean of each channel's negative values over several batches of maps."""
    margins = []
    for channel in range(batches[0].shape[1]):
        values = [v for x in batches for v in x[:, channel].ravel() if v < 0]
        margins.append(sum(values) / len(values) if values else 0.0)
    return np.array(margins)


def formula_of(loss, maps, teacher, seen=()):
    def partial(s, t):
        total = 0.0
        for i in np.ndindex(s.shape):
            if not s[i] <= t[i] <= 0:
                total += (t[i] - s[i]) ** 2
        return total / len(s)

    def formula(student):
        own = {name: value.numpy() for name, value in loss.state_dict().items()}
        total = 0.0
        for place, size in enumerate([(3, 3), (2, 2)]):
            name = f"pre{place + 1}"
            margin = margins_of([*(batch[name] for batch in seen), teacher[name]])
            t = maps.pool(np.maximum(teacher[name], margin[:, None, None]), *size)
            s = maps.conv(maps.pool(student[name], *size), own[f"connectors.{place}.0.weight"])
            s = maps.norm(s, own[f"connectors.{place}.1.weight"], own[f"connectors.{place}.1.bias"])
            total += partial(s, t) / 2 ** (1 - place)
        return total

    return formula


def test_value_and_gradients(pair, build, check_formula, maps):
    student, teacher = pair
    teacher["pre2"][:, 1] = np.abs(teacher["pre2"][:, 1])  # a channel that is never negative
    loss = build(OFD, student, teacher)
    check_formula(loss, student, teacher, formula_of(loss, maps, teacher), own=True)


def test_margins_are_the_mean_over_all_batches_seen(pair, build, outputs, check_formula, maps, rng):
    student, teacher = pair
    loss = build(OFD, student, teacher)
    earlier = [{k: rng.normal(size=v.shape) - 0.5 * i for k, v in teacher.items()} for i in (1, 2)]
    for batch in earlier:
        loss(outputs(student), outputs(batch))
    state = {k: v.clone() for k, v in loss.state_dict().items()}
    check_formula(loss, student, teacher, formula_of(loss, maps, teacher, earlier))
    resumed = build(OFD, student, teacher)
    resumed.load_state_dict(state)
    check_formula(resumed, student, teacher, formula_of(loss, maps, teacher, earlier))


def test_a_check_without_gradients_leaves_the_margins(pair, build, outputs):
    student, teacher = pair
    loss = build(OFD, student, teacher)
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    with torch.no_grad():
        checked = loss(outputs(student), outputs(teacher))
        loss(outputs({k: 0 * v for k, v in student.items()}), outputs({k: 0 * v for k, v in teacher.items()}))
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())
    assert loss(outputs(student), outputs(teacher)).item() == checked.item()
    assert not torch.equal(loss.margins[0].count, before["margins.0.count"])


def test_is_zero_at_equality_and_where_a_dead_neuron_is_lower(outputs, build):
    t = np.array([[1.0, -1.0], [2.0, -3.0]]).reshape(2, 2, 1, 1)  # margins 0 and -2
    loss = build(OFD, {"pre1": t}, {"pre1": t})
    loss.connectors[0] = torch.nn.Identity()

    def value(s):
        return loss(outputs({"pre1": np.array(s).reshape(2, 2, 1, 1)}), outputs({"pre1": t})).item()

    assert value([[1.0, -1.0], [2.0, -2.0]]) == 0
    assert value([[1.0, -9.0], [2.0, -7.0]]) == 0  # further below zero than the teacher
    assert value([[1.0, -1.0], [2.0, -1.0]]) == pytest.approx(1 / 2)  # above the margin
    assert value([[0.0, -1.0], [2.0, -2.0]]) == pytest.approx(1 / 2)  # below a neuron that fires


def test_is_finite_where_features_are_degenerate(pair, build, check_survives):
    check_survives(build(OFD, *pair), *pair)


def test_one_image_of_one_pixel_is_refused(check_refuses_one_pixel):
    check_refuses_one_pixel(OFD, "pre1")


def test_features_that_are_not_maps_are_refused(rng, outputs):
    flat = outputs({"pre1": rng.normal(size=(2, 3))})
    with pytest.raises(RequestError, match=r"^the feature 'pre'"):
        OFD().setup(flat, flat)
    assert OFD().weight == 0.001
