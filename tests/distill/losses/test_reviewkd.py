"""Knowledge review: fusions from the deepest stage to the shallowest, and the hierarchical context loss."""

import numpy as np
import pytest
import torch

from dfkd.distill.losses import ReviewKD
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(normal):
    """Three stages of odd resolutions, of other widths and other resolutions on the teacher's side."""
    return normal(
        {"stage1": (3, 2, 5, 4), "stage2": (3, 3, 3, 3), "stage3": (3, 2, 2, 2), "last": (3, 2)},
        {"stage1": (3, 3, 6, 5), "stage2": (3, 2, 5, 5), "stage3": (3, 4, 2, 2), "last": (3, 3)},
    )


def context(maps, s, t):
    """The hierarchical context loss of two maps."""
    total, weights, weight = ((s - t) ** 2).mean(), 1.0, 0.5
    for level in (4, 2, 1):
        if level < min(s.shape[2:]):
            total += weight * ((maps.pool(s, level, level) - maps.pool(t, level, level)) ** 2).mean()
            weights, weight = weights + weight, weight / 2
    return total / weights


def formula_of(loss, maps, teacher):
    def formula(student):
        own = {name: value.numpy() for name, value in loss.state_dict().items()}
        places = ["stage1", "stage2", "stage3"]
        student, theirs = dict(student), dict(teacher)
        if "last" in loss.taps:
            places.append("last")
            student["last"], theirs["last"] = student["last"][:, :, None, None], theirs["last"][:, :, None, None]
        total, deeper = 0.0, None
        for i, name in reversed(list(enumerate(places))):

            def normed(x, layer, i=i):
                x = maps.conv(x, own[f"fusions.{i}.{layer}.0.weight"])
                return maps.norm(x, own[f"fusions.{i}.{layer}.1.weight"], own[f"fusions.{i}.{layer}.1.bias"])

            x = normed(student[name], "enter")
            if deeper is not None:
                y = maps.nearest(deeper, *x.shape[2:])
                both = np.concatenate([x, y], axis=1)
                scores = maps.conv(both, own[f"fusions.{i}.attend.weight"], own[f"fusions.{i}.attend.bias"])
                attention = 1 / (1 + np.exp(-scores))
                x = x * attention[:, :1] + y * attention[:, 1:]
            deeper = maps.nearest(x, *theirs[name].shape[2:])
            total += context(maps, normed(deeper, "leave"), theirs[name])
        return total

    return formula


@pytest.mark.parametrize("last", [False, True])
def test_value_and_gradients(pair, build, check_formula, maps, last):
    student, teacher = pair
    loss = build(ReviewKD, student, teacher, last=last)
    assert loss.taps == (("stage", "last") if last else ("stage",))
    check_formula(loss, student, teacher, formula_of(loss, maps, teacher), own=last)


def test_the_deepest_stage_reviews_nothing_and_the_width_within_is_its_own_up_to_512(rng, build):
    student = {"stage1": rng.normal(size=(2, 2, 2, 2)), "stage2": rng.normal(size=(2, 520, 1, 1))}
    loss = build(ReviewKD, student, student)
    assert loss.fusions[1].attend is None
    assert [fusion.enter[0].out_channels for fusion in loss.fusions] == [512, 512]


def test_a_shallow_stage_learns_from_what_lies_deeper_and_not_the_other_way(pair, build, outputs):
    student, teacher = pair
    loss = build(ReviewKD, student, teacher)
    ours = outputs(student, grad=True)
    without = {k: torch.tensor(v) for k, v in teacher.items()}
    loss(ours, outputs(teacher)).backward()
    assert all(ours.features[k].grad.abs().sum() > 0 for k in without if k != "last")
    # the deepest stage's own term does not depend on the shallow ones
    moved = {**student, "stage1": student["stage1"] + 1, "stage2": -student["stage2"]}
    values = []
    for side in (student, moved):
        x = loss.fusions[2](torch.tensor(side["stage3"]), None, torch.Size((2, 2)))[0]
        values.append(x)
    assert torch.equal(*values)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (5, 7), (8, 2), (9, 9)])
def test_context_loss_is_the_mean_square_of_a_constant_difference_and_zero_at_equality(outputs, rng, size, build):
    """Its weights sum to 1 at every resolution: all levels see the same difference."""
    student = {"stage1": rng.normal(size=(2, 3, *size))}
    loss = build(ReviewKD, student, student)
    reviewed, _ = loss.fusions[0](torch.tensor(student["stage1"]), None, torch.Size(size))
    teacher = {"stage1": reviewed.detach().numpy()}
    assert loss(outputs(student), outputs(teacher)).item() == pytest.approx(0, abs=1e-12)
    off = {"stage1": teacher["stage1"] + 3}
    assert loss(outputs(student), outputs(off)).item() == pytest.approx(9)


def test_the_batch_may_be_permuted(pair, build, check_permutation):
    check_permutation(build(ReviewKD, *pair, last=True), *pair)


def test_is_finite_where_features_are_degenerate(pair, build, check_survives):
    check_survives(build(ReviewKD, *pair), *pair)


def test_one_image_is_refused_where_the_last_feature_is_reviewed(pair, build, outputs):
    student, teacher = pair
    loss = build(ReviewKD, student, teacher, last=True)
    with pytest.raises(RequestError, match="give a --batch-size of 2 or more"):
        loss(*(outputs({k: v[:1] for k, v in side.items()}) for side in pair))


def test_bfloat16_is_close(pair, build, check_close_in_bf16):
    check_close_in_bf16(build(ReviewKD, *pair, last=True), *pair)


def test_features_of_another_shape_are_refused(rng, outputs):
    flat = outputs({"stage1": rng.normal(size=(2, 3))})
    with pytest.raises(RequestError, match=r"^the feature 'stage'"):
        ReviewKD().setup(flat, flat)
    odd = outputs({"stage1": rng.normal(size=(2, 3, 2, 2)), "last": rng.normal(size=(2, 3, 4))})
    with pytest.raises(RequestError, match=r"^the feature 'last'"):
        ReviewKD(last=True).setup(odd, odd)
    assert ReviewKD().weight == 5.0
