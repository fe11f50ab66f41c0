"""Boundary samples against NumPy, with networks that are one linear layer."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from dfkd.distill.losses import BSS
from dfkd.distill.losses.bss import base_samples, cross, target_classes
from dfkd.distill.objective import build_objective
from dfkd.distill.setting import Setting
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError


def answer(network, view):
    return Outputs(network(view.flatten(1)))


def linear(weight, bias, trains):
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    return layer.requires_grad_(trains)


def bound(student, teacher, **options):
    loss = BSS(**options)
    loss.bind(Setting(partial(answer, student), partial(answer, teacher), None, None, None))
    return loss


def call(loss, view):
    """As the training loop does."""
    ours, theirs = loss.setting.student(view), loss.setting.teacher(view)
    return loss(ours, Outputs(theirs.logits.detach(), view=view))


@pytest.fixture
def world(rng):
    """Views [batch, 2, 2, 2]; weights and biases of student and teacher for some classes."""

    def make(classes, batch=5):
        view = rng.normal(size=(batch, 2, 2, 2))
        return view, *((rng.normal(size=(classes, 8)), rng.normal(size=classes)) for _ in range(2))

    return make


def pushed(view, weight, bias, base, target, steps=10, rate=0.3):
    """The samples, one at a time, by the rule in the docstring; the gradient of a linear layer is its weights."""
    low, high = view.min(axis=(0, 2, 3)), view.max(axis=(0, 2, 3))
    samples = []
    for x, b, k in zip(view, base, target, strict=True):
        x = x.copy()
        for _ in range(steps):
            t = weight @ x.reshape(-1) + bias
            if t.argmax() != b:
                break
            slope = (weight[k] - weight[b]).reshape(x.shape)
            x = x + rate * (t[b] - t[k] + 1e-4) * slope / np.sqrt((slope**2).sum())
            x = np.stack([np.clip(x[c], low[c], high[c]) for c in range(len(x))])
        samples.append(x)
    return np.stack(samples)


def numpy_loss(samples, student, teacher, temperature, softmax):
    p, q = (softmax((samples.reshape(len(samples), -1) @ w.T + b) / temperature) for w, b in (teacher, student))
    return (p * np.log(p / q)).sum(axis=1).mean()


def test_bss(world, softmax):
    """With two classes the target is the other one. Value, and gradient of the student's weights."""
    view, student, teacher = world(2)
    base = (view.reshape(5, -1) @ teacher[0].T + teacher[1]).argmax(axis=1)
    samples = pushed(view, *teacher, base, 1 - base)
    assert not np.allclose(samples, view)
    network = linear(*student, trains=True)
    value = call(bound(network, linear(*teacher, trains=False)), torch.tensor(view))
    assert value.ndim == 0
    assert value.item() == pytest.approx(numpy_loss(samples, student, teacher, 3.0, softmax), rel=1e-5)
    value.backward()
    expected = np.zeros_like(student[0])
    for i in np.ndindex(expected.shape):
        ends = []
        for shift in (1e-5, -1e-5):
            moved = student[0].copy()
            moved[i] += shift
            ends.append(numpy_loss(samples, (moved, student[1]), teacher, 3.0, softmax))
        expected[i] = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(network.weight.grad.numpy(), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("steps", "rate"), [(1, 0.3), (3, 0.05), (10, 0.3)])
def test_the_samples_are_pushed_until_the_teacher_leaves_the_class(world, steps, rate):
    view, _, teacher = world(4, batch=12)
    logits = view.reshape(12, -1) @ teacher[0].T + teacher[1]
    base, target = logits.argmax(axis=1), logits.argsort(axis=1)[:, -2]
    chosen = np.array([7, 0, 3, 11, 5])
    found = cross(
        partial(answer, linear(*teacher, trains=False)),
        torch.tensor(view),
        torch.tensor(chosen),
        torch.tensor(base[chosen]),
        torch.tensor(target[chosen]),
        steps,
        rate,
    )
    low, high = view.min(axis=(0, 2, 3)), view.max(axis=(0, 2, 3))
    # the bounds are the whole batch's, to which two samples with its extremes are added
    ends = np.stack([np.broadcast_to(x[:, None, None], view.shape[1:]) for x in (low, high)])
    rows = np.concatenate([view[chosen], ends])
    classes = [np.concatenate([x[chosen], [other] * 2]) for other, x in enumerate((base, target))]
    np.testing.assert_allclose(found.numpy(), pushed(rows, *teacher, *classes, steps, rate)[:5], rtol=1e-10)
    assert not found.requires_grad


def test_with_enough_steps_the_samples_lie_across_the_boundary(world):
    view, _, teacher = world(2, batch=30)
    network = linear(*teacher, trains=False)
    x = torch.tensor(view)
    base = answer(network, x).logits.argmax(dim=1)
    moved = cross(partial(answer, network), x, torch.arange(30), base, 1 - base, 200, 0.3)
    before, after = (answer(network, y).logits.diff(dim=1).abs()[:, 0] for y in (x, moved))
    crossed = answer(network, moved).logits.argmax(dim=1) != base
    assert crossed.double().mean() > 0.8  # the others are held by the range of the pixels
    assert (after[crossed] < before[crossed]).all()


def test_the_base_samples_are_those_that_differ_most_outside_the_teachers_class(logits, softmax):
    student, teacher = logits
    p, q = softmax(teacher), softmax(student)
    scores = []
    for i in range(6):
        scores.append(sum((p[i, k] - q[i, k]) ** 2 for k in range(5) if k != teacher[i].argmax()))
    ours, theirs = torch.tensor(student), torch.tensor(teacher)
    assert base_samples(ours, theirs, 3).tolist() == np.argsort(scores)[::-1][:3].tolist()
    assert base_samples(ours, theirs, 6).tolist() == list(range(6))
    assert base_samples(ours, theirs, 64).tolist() == list(range(6))


def test_the_difference_in_the_teachers_class_itself_does_not_choose():
    """With that class the first row would differ more (0.20 to 0.18), without it the second does (0.04 to 0.09)."""
    teacher = torch.tensor([[0.9, 0.025, 0.025, 0.025, 0.025]] * 2).log()
    student = torch.tensor([[0.5, 0.125, 0.125, 0.125, 0.125], [0.6, 0.325, 0.025, 0.025, 0.025]]).log()
    assert base_samples(student, teacher, 1).tolist() == [1]


def test_only_the_chosen_samples_are_used(world):
    view, student, teacher = world(2, batch=9)
    loss = bound(linear(*student, trains=True), linear(*teacher, trains=False), samples=4)
    sizes = []
    setting = loss.setting
    loss.bind(
        Setting(lambda x: (sizes.append(len(x)), setting.student(x))[1], setting.teacher, None, None, None),
    )
    call(loss, torch.tensor(view))
    assert sizes == [9, 4]


def test_the_target_class_is_drawn_with_the_teachers_probability_among_the_others(softmax):
    torch.manual_seed(0)
    row = np.array([2.0, 1.0, -1.0, 0.5])
    drawn = target_classes(torch.tensor(row).expand(40_000, 4), torch.zeros(40_000, dtype=torch.int64))
    expected = softmax(row[None, 1:])[0]
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 40_000, [0, *expected], atol=0.01)


def test_a_target_is_drawn_where_its_probability_underflows():
    torch.manual_seed(0)
    row = torch.tensor([[2000.0, 0, 0]]).expand(1000, 3)
    drawn = np.bincount(target_classes(row, row.argmax(dim=1)), minlength=3)
    assert drawn[0] == 0
    assert min(drawn[1:]) > 400


def test_it_draws_from_torchs_generator(world):
    view, student, teacher = world(6, batch=8)
    loss = bound(linear(*student, trains=True), linear(*teacher, trains=False))
    values = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(seed)
        values.append(call(loss, torch.tensor(view)).item())
    assert values[0] == values[1]
    assert len(set(values)) > 1


def test_it_is_zero_where_the_student_is_the_teacher(world):
    view, _, teacher = world(3)
    loss = bound(linear(*teacher, trains=True), linear(*teacher, trains=False))
    assert call(loss, torch.tensor(view)).item() == pytest.approx(0, abs=1e-12)


def test_it_does_not_depend_on_the_batchs_order(world):
    view, student, teacher = world(2)
    loss = bound(linear(*student, trains=True), linear(*teacher, trains=False), samples=3)
    values = [call(loss, torch.tensor(view[order])).item() for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2])]
    assert values[0] == pytest.approx(values[1])


def test_nothing_of_the_networks_becomes_its_own(world):
    view, student, teacher = world(3)
    ours, theirs = linear(*student, trains=True), linear(*teacher, trains=True)
    loss = bound(ours, theirs)
    call(loss, torch.tensor(view)).backward()
    assert not list(loss.parameters())
    assert not loss.state_dict()
    assert theirs.weight.grad is None
    assert ours.weight.grad is not None


def test_it_can_be_checked_without_gradients_on_zeros(world):
    _, student, teacher = world(3)
    objective = build_objective(["kd", "bss"])
    zeros = torch.zeros(2, 2, 2, 2, dtype=torch.float64)
    setting = bound(linear(*student, trains=True), linear(*teacher, trains=False)).setting
    ours, theirs = setting.student(zeros), setting.teacher(zeros)
    objective.setup(ours, theirs, setting)
    theirs = Outputs(theirs.logits.detach(), view=zeros)
    objective.check(ours, theirs)
    with torch.no_grad():
        assert objective(ours, theirs)[0].isfinite()


def test_the_student_normalizes_the_samples_by_their_own_statistics(world):
    """In training mode it takes their statistics up, as in the authors' code; the teacher's stay."""
    view, student, teacher = world(3)
    ours, theirs = (
        nn.Sequential(nn.BatchNorm1d(8, dtype=torch.float64), linear(*weights, trains=True))
        for weights in (student, teacher)
    )
    theirs.eval()
    loss = bound(ours, theirs)
    call(loss, torch.tensor(view))
    assert ours[0].num_batches_tracked == 2
    assert theirs[0].num_batches_tracked == 0


@pytest.mark.parametrize("case", ["far", "flat", "same", "one", "single class"])
def test_it_is_finite_with_its_gradient(world, case):
    view, student, teacher = world(1 if case == "single class" else 3)
    scale = {"far": 1000.0, "flat": 0.0}.get(case, 1.0)
    view = {"same": view[:1].repeat(5, axis=0), "one": view[:1]}.get(case, view)
    network = linear(*student, trains=True).float()
    loss = bound(network, linear(scale * teacher[0], teacher[1], trains=False).float())
    value = call(loss, torch.tensor(view, dtype=torch.float32))
    value.backward()
    assert value.isfinite()
    assert network.weight.grad.isfinite().all()


def test_it_refuses_outputs_without_the_view(world):
    view, student, teacher = world(3)
    loss = bound(linear(*student, trains=True), linear(*teacher, trains=False))
    ours = loss.setting.student(torch.tensor(view))
    with pytest.raises(RequestError, match=r"^it makes its samples from the images, which are not available here"):
        loss(ours, ours)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"rate": -1.0}, {"samples": 0}, {"steps": 0}])
def test_it_refuses(options):
    with pytest.raises(RequestError, match=f"^{next(iter(options))}="):
        BSS(**options)
