"""SimKD: the projected last feature, and the teacher's classifier put into the student."""

import numpy as np
import pytest
import torch
from torch import nn

from dfkd.distill.losses import SimKD
from dfkd.distill.setting import Setting
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(normal):
    return normal(
        {"stage1": (3, 2, 6, 6), "stage2": (3, 2, 4, 4), "last": (3, 3)},
        {"stage1": (3, 2, 6, 6), "stage2": (3, 4, 3, 3), "last": (3, 4)},
    )


@pytest.fixture
def setting():
    def of(student_head, teacher_head):
        def unused(view):
            raise AssertionError("no image is asked for")

        return Setting(unused, unused, student_head, teacher_head, None)

    return of


def test_convolutions_value_and_gradients(pair, build, check_formula, maps):
    student, teacher = ({k: v for k, v in side.items() if k != "last"} for side in pair)
    loss = build(SimKD, student, teacher)
    assert loss.taps == ("stage",)
    assert [tuple(loss.projector[i].weight.shape) for i in (0, 3, 6)] == [(2, 2, 1, 1), (2, 2, 3, 3), (4, 2, 1, 1)]

    def formula(student):
        own = {name: value.numpy() for name, value in loss.state_dict().items()}
        x = maps.pool(student["stage2"], 3, 3)
        for layer in (0, 3, 6):
            x = maps.conv(x, own[f"projector.{layer}.weight"])
            x = maps.norm(x, own[f"projector.{layer + 1}.weight"], own[f"projector.{layer + 1}.bias"])
            x = np.maximum(x, 0)
        return ((x - teacher["stage2"]) ** 2).mean()

    check_formula(loss, student, teacher, formula, own=True)


def test_linear_value_and_gradients(pair, build, check_formula):
    student, teacher = ({"last": side["last"]} for side in pair)
    loss = build(SimKD, student, teacher, projector="linear")
    assert loss.taps == ("last",)

    def formula(student):
        own = {name: value.numpy() for name, value in loss.state_dict().items()}
        return ((student["last"] @ own["projector.weight"].T + own["projector.bias"] - teacher["last"]) ** 2).mean()

    check_formula(loss, student, teacher, formula, own=True)


def test_is_zero_where_the_projected_feature_equals_the_teachers(pair, build, outputs):
    student, teacher = pair
    for options, name in (({}, "stage2"), ({"projector": "linear"}, "last")):
        loss = build(SimKD, student, teacher, **options)
        x = torch.tensor(student[name])
        x = loss.projector(nn.functional.adaptive_avg_pool2d(x, 3) if name == "stage2" else x)
        assert loss(outputs(student), outputs({**teacher, name: x.detach().numpy()})).item() < 1e-20


@pytest.mark.parametrize("teacher_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_after_finish_the_student_is_the_projector_and_the_teachers_classifier(
    pair, outputs, setting, dtype, teacher_bias
):
    student, teacher = pair
    heads = nn.Linear(3, 5).to(dtype), nn.Linear(4, 5, bias=teacher_bias).to(dtype)
    frozen = [p.clone() for p in heads[1].parameters()]
    loss = SimKD(reuse=True)
    assert loss.taps == ("last",)
    loss.bind(setting(*heads))
    loss.setup(outputs(student), outputs(teacher))
    loss.to(dtype)
    assert {name for name, _ in loss.named_parameters()} == {"projector.weight", "projector.bias"}
    feature = torch.randn(64, 3, dtype=dtype) * 10
    loss.finish()
    expected = heads[1](loss.projector(feature))
    torch.testing.assert_close(heads[0](feature), expected)
    once = [p.clone() for p in heads[0].parameters()]
    loss.finish()
    assert all(torch.equal(p, q) for p, q in zip(heads[0].parameters(), once, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(heads[1].parameters(), frozen, strict=True))


def test_finish_without_reuse_changes_nothing(pair, outputs, setting):
    head = nn.Linear(3, 5)
    before = head.weight.clone()
    loss = SimKD(projector="linear")
    loss.bind(setting(head, nn.Linear(4, 5)))
    loss.setup(*(outputs(side) for side in pair))
    loss.finish()
    assert torch.equal(head.weight, before)


def test_training_with_reuse_alone_reaches_the_teachers_logits(rng, setting, outputs):
    """The head is never trained: what the projector learned is folded into it."""
    torch.manual_seed(0)
    heads = nn.Linear(6, 5), nn.Linear(4, 5)
    feature, mixed = rng.normal(size=(64, 6)), rng.normal(size=(6, 4))
    student, teacher = outputs({"last": feature}, torch.float32), outputs({"last": feature @ mixed}, torch.float32)
    loss = SimKD(reuse=True)
    loss.bind(setting(*heads))
    loss.setup(student, teacher)
    optimizer = torch.optim.Adam(loss.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss(student, teacher).backward()
        optimizer.step()
    loss.finish()
    ours, theirs = heads[0](student.features["last"]), heads[1](teacher.features["last"])
    torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0)


def test_with_a_linear_projector_the_batch_may_be_permuted_and_maps_are_averaged(
    pair, build, check_permutation, check_averages_maps
):
    loss = build(SimKD, *pair, projector="linear")
    check_permutation(loss, *pair)
    check_averages_maps(loss, *pair)


@pytest.mark.parametrize("projector", ["conv", "linear"])
def test_is_finite_where_features_are_degenerate(pair, build, check_survives, projector):
    check_survives(build(SimKD, *pair, projector=projector), *pair)


def test_one_image_of_one_pixel_is_refused_by_the_convolutions(check_refuses_one_pixel):
    check_refuses_one_pixel(SimKD, "stage1")


def test_bfloat16_is_close_with_a_linear_projector(pair, build, check_close_in_bf16):
    check_close_in_bf16(build(SimKD, *pair, projector="linear"), *pair)


def test_wrong_options_are_refused():
    with pytest.raises(RequestError, match=r"^reuse=true"):
        SimKD(reuse=True, projector="conv")
    with pytest.raises(RequestError, match=r"^factor=0"):
        SimKD(factor=0)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ((None, nn.Linear(4, 5)), "a student whose logits"),
        ((nn.Linear(3, 5), None), "a teacher whose logits"),
        ((nn.Linear(3, 5, bias=False), nn.Linear(4, 5)), "a bias in the student's"),
        ((nn.Linear(3, 6), nn.Linear(4, 5)), "5 classes into the student's 6"),
    ],
)
def test_heads_that_cannot_be_reused_are_refused(setting, heads, message):
    with pytest.raises(RequestError, match=message):
        SimKD(reuse=True).bind(setting(*heads))
    SimKD().bind(setting(*heads))  # nothing is asked of them then


@pytest.mark.parametrize(("heads", "who"), [((8, 4), "student"), ((3, 8), "teacher")])
def test_a_last_feature_that_is_not_the_heads_input_is_refused(pair, outputs, setting, heads, who):
    loss = SimKD(reuse=True)
    loss.bind(setting(nn.Linear(heads[0], 5), nn.Linear(heads[1], 5)))
    with pytest.raises(RequestError, match=f"the {who}'s feature 'last' has"):
        loss.setup(*(outputs(side) for side in pair))


def test_features_of_another_shape_are_refused(rng, outputs):
    flat = outputs({"stage1": rng.normal(size=(2, 3)), "last": rng.normal(size=(2, 3, 4))})
    with pytest.raises(RequestError, match=r"^the feature 'stage'"):
        SimKD().setup(flat, flat)
    with pytest.raises(RequestError, match=r"^the feature 'last'"):
        SimKD(projector="linear").setup(flat, flat)
