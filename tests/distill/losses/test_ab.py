"""Activation boundaries: the piecewise loss, its connectors, and where it is 0."""

import numpy as np
import pytest
import torch

from dfkd.distill.losses import AB
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(normal):
    """Two stages: one wider and larger on the teacher's side, one of equal width and smaller there."""
    return normal({"pre1": (3, 2, 4, 4), "pre2": (3, 3, 3, 3)}, {"pre1": (3, 3, 5, 5), "pre2": (3, 3, 2, 2)})


def formula_of(loss, maps, teacher, margin):
    def boundary(s, t):
        total = 0.0
        for i in np.ndindex(s.shape):
            if t[i] > 0 and s[i] < margin:
                total += (margin - s[i]) ** 2
            if t[i] <= 0 and s[i] > -margin:
                total += (margin + s[i]) ** 2
        return total / len(s)

    def formula(student):
        own = {name: value.numpy() for name, value in loss.state_dict().items()}
        first = maps.conv(student["pre1"], own["connectors.0.0.weight"])
        first = maps.norm(first, own["connectors.0.1.weight"], own["connectors.0.1.bias"])
        shallow = boundary(first, maps.pool(teacher["pre1"], 4, 4))
        return shallow / 2 + boundary(maps.pool(student["pre2"], 2, 2), teacher["pre2"])

    return formula


@pytest.mark.parametrize("margin", [1.0, 0.4])
def test_value_and_gradients(pair, build, check_formula, maps, margin):
    student, teacher = pair
    loss = build(AB, student, teacher, margin=margin)
    assert list(loss.state_dict()) == ["connectors.0.0.weight", "connectors.0.1.weight", "connectors.0.1.bias"]
    with torch.no_grad():
        loss.connectors[0][1].weight.copy_(torch.tensor([0.5, 2.0, 1.0]))
        loss.connectors[0][1].bias.copy_(torch.tensor([0.3, -0.2, 0.1]))
    formula = formula_of(loss, maps, teacher, margin)
    check_formula(loss, student, teacher, formula, own=True)


def test_each_stage_counts_half_of_the_next(rng, outputs, build):
    maps = {f"pre{i}": rng.normal(size=(2, 3, 2, 2)) for i in (1, 2, 3)}
    values = []
    for wrong in maps:
        # every neuron fires as the teacher's does and far from the boundary, except in one stage
        far = {k: 5 * np.sign(v) for k, v in maps.items()}
        loss = build(AB, maps, maps)
        values.append(loss(outputs({**far, wrong: -far[wrong]}), outputs(maps)).item())
        assert loss(outputs(far), outputs(maps)).item() == 0
    assert values == pytest.approx([12 * 36 / 4, 12 * 36 / 2, 12 * 36])


def test_only_the_teachers_signs_matter(pair, build, outputs, rng):
    student, teacher = pair
    teacher = {k: v.repeat(2, axis=2) if k == "pre2" else v[:, :, :4, :4] for k, v in teacher.items()}
    student = {**student, "pre2": rng.normal(size=(3, 3, 4, 2))}
    loss = build(AB, student, teacher)
    once = loss(outputs(student), outputs(teacher)).item()
    scaled = {k: 7 * v for k, v in teacher.items()}
    assert loss(outputs(student), outputs(scaled)).item() == pytest.approx(once)


def test_is_finite_where_features_are_degenerate(pair, build, check_survives):
    check_survives(build(AB, *pair), *pair)


def test_one_image_of_one_pixel_is_refused_where_it_would_be_normalized(check_refuses_one_pixel):
    check_refuses_one_pixel(AB, "pre1")


def test_wrong_input_is_refused(rng, outputs):
    for margin in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(RequestError, match=r"^margin="):
            AB(margin=margin)
    flat = outputs({"pre1": rng.normal(size=(2, 3))})
    with pytest.raises(RequestError, match=r"^the feature 'pre'"):
        AB().setup(flat, flat)
    assert AB().weight == 0.003
