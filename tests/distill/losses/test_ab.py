"""Activation boundaries: the piecewise loss, its connectors, and where it is 0."""

import numpy as np
import pytest
import torch

from dfkd.distill.losses import AB
from dfkd.errors import RequestError


@pytest.fixture
def pair(rng):
    """Two stages: one wider and larger on the teacher's side, one of equal width and smaller there."""
    student = {"pre1": rng.normal(size=(3, 2, 4, 4)), "pre2": rng.normal(size=(3, 3, 3, 3))}
    teacher = {"pre1": rng.normal(size=(3, 3, 5, 5)), "pre2": rng.normal(size=(3, 3, 2, 2))}
    return student, teacher


def built(outputs, student, teacher, **options):
    loss = AB(**options)
    loss.setup(outputs(student), outputs(teacher))
    return loss.double()


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
def test_value_and_gradients(pair, outputs, prove, prove_own, maps, margin):
    student, teacher = pair
    loss = built(outputs, student, teacher, margin=margin)
    assert list(loss.state_dict()) == ["connectors.0.0.weight", "connectors.0.1.weight", "connectors.0.1.bias"]
    with torch.no_grad():
        loss.connectors[0][1].weight.copy_(torch.tensor([0.5, 2.0, 1.0]))
        loss.connectors[0][1].bias.copy_(torch.tensor([0.3, -0.2, 0.1]))
    formula = formula_of(loss, maps, teacher, margin)
    prove(loss, student, teacher, formula)
    loss.zero_grad()
    prove_own(loss, student, teacher, formula)


def test_each_stage_counts_half_of_the_next(rng, outputs):
    maps = {f"pre{i}": rng.normal(size=(2, 3, 2, 2)) for i in (1, 2, 3)}
    values = []
    for wrong in maps:
        # every neuron fires as the teacher's does and far from the boundary, except in one stage
        far = {k: 5 * np.sign(v) for k, v in maps.items()}
        loss = built(outputs, maps, maps)
        values.append(loss(outputs({**far, wrong: -far[wrong]}), outputs(maps)).item())
        assert loss(outputs(far), outputs(maps)).item() == 0
    assert values == pytest.approx([12 * 36 / 4, 12 * 36 / 2, 12 * 36])


def test_only_the_teachers_signs_matter_and_the_batch_may_be_permuted(pair, outputs, rng):
    student, teacher = pair
    teacher = {k: v.repeat(2, axis=2) if k == "pre2" else v[:, :, :4, :4] for k, v in teacher.items()}
    student = {**student, "pre2": rng.normal(size=(3, 3, 4, 2))}
    loss = built(outputs, student, teacher)
    once = loss(outputs(student), outputs(teacher)).item()
    scaled = {k: 7 * v for k, v in teacher.items()}
    assert loss(outputs(student), outputs(scaled)).item() == pytest.approx(once)
    order = [2, 0, 1]
    turned = [outputs({k: v[order] for k, v in side.items()}) for side in (student, teacher)]
    assert loss(*turned).item() == pytest.approx(once)


def test_is_finite_where_features_are_degenerate(pair, outputs, assert_finite, degenerate):
    student, teacher = pair
    loss = built(outputs, student, teacher)
    student, teacher = (degenerate(side) for side in pair)
    assert_finite(loss, outputs(student, grad=True), outputs(teacher))


def test_one_image_of_one_pixel_is_refused_where_it_would_be_normalized(rng, outputs):
    student, teacher = {"pre1": rng.normal(size=(2, 2, 1, 1))}, {"pre1": rng.normal(size=(2, 3, 1, 1))}
    loss = built(outputs, student, teacher)
    with pytest.raises(RequestError, match="--batch-size 2"):
        loss(*(outputs({"pre1": side["pre1"][:1]}) for side in (student, teacher)))


def test_bfloat16_is_close(pair, outputs, assert_finite):
    student, teacher = pair
    loss = built(outputs, student, teacher).float()
    exact = loss(*(outputs(side, torch.float32) for side in pair)).item()
    low = assert_finite(loss, outputs(student, torch.bfloat16, grad=True), outputs(teacher, torch.bfloat16))
    assert low == pytest.approx(exact, rel=0.02)


def test_wrong_input_is_refused(rng, outputs):
    for margin in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(RequestError, match="ab:margin="):
            AB(margin=margin)
    flat = outputs({"pre1": rng.normal(size=(2, 3))})
    with pytest.raises(RequestError, match="ab: the feature 'pre'"):
        AB().setup(flat, flat)
    assert AB().weight == 0.003
