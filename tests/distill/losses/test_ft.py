import numpy as np
import pytest
import torch

from dfkd.distill.losses.ft import FT
from dfkd.system.errors import RequestError
from dfkd.training.optim import make_optimizer, set_rate


@pytest.fixture
def pair(normal):
    return normal({"stage1": (2, 3, 6, 6)}, {"stage1": (2, 4, 3, 3)})


def convolved(image, layers):
    """3x3 convolutions, each with a leaky ReLU, on [channels, height, width]; loops over the pixels."""
    for layer in layers:
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        if isinstance(layer, torch.nn.ConvTranspose2d):  # the same as a convolution with the kernel turned round
            weight = weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
        padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
        out = np.zeros((len(weight), *image.shape[1:]))
        for i in range(image.shape[1]):
            for j in range(image.shape[2]):
                window = padded[:, i : i + 3, j : j + 3]
                out[:, i, j] = (weight * window).sum(axis=(1, 2, 3)) + bias
        image = np.where(out > 0, out, 0.1 * out)
    return image


def test_factors_once_the_paraphraser_has_learnt(pair, build, outputs, check_formula):
    student, teacher = pair
    loss = build(FT, student, teacher, paraphraser=1)
    loss(outputs(student), outputs(teacher))
    assert loss.encoder[-2].out_channels == 2

    def formula(s):
        total = 0.0
        for b in range(2):
            theirs = convolved(teacher["stage1"][b], loss.encoder[::2]).ravel()
            pooled = s["stage1"][b].reshape(3, 3, 2, 3, 2).mean(axis=(2, 4))
            ours = convolved(pooled, loss.translator[::2]).ravel()
            gap = np.abs(theirs / np.linalg.norm(theirs) - ours / np.linalg.norm(ours))
            total += gap.mean() / 2
        return total

    check_formula(loss, student, teacher, formula)


def test_the_first_steps_reconstruct_the_teachers_map(pair, build, outputs, check_formula):
    student, teacher = pair
    loss = build(FT, student, teacher, paraphraser=2)

    def formula(s):
        gaps = [convolved(convolved(x, loss.encoder[::2]), loss.decoder[::2]) - x for x in teacher["stage1"]]
        return np.abs(np.stack(gaps)).mean() / 500

    value = loss(outputs(student), outputs(teacher))
    assert value.item() == pytest.approx(formula(student), rel=1e-5)
    value.backward()
    assert all(p.grad is not None for part in (loss.encoder, loss.decoder) for p in part.parameters())
    assert all(p.grad is None for p in loss.translator.parameters())


def check_gradients(loss, parameter, value):
    """One entry of a gradient against central differences."""
    value().backward()
    entry = (0,) * parameter.ndim
    values = []
    for shift in (1e-6, -1e-6):
        with torch.no_grad():
            parameter[entry] += shift
            values.append(value().item())
            parameter[entry] -= shift
    assert parameter.grad[entry].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)
    assert values[0] != values[1]


def test_the_gradients_of_its_own_parameters(pair, build, outputs):
    ours, theirs = map(outputs, pair)
    first = build(FT, *pair, paraphraser=9)
    check_gradients(first, first.encoder[0].weight, lambda: first(ours, theirs))
    then = build(FT, *pair, paraphraser=1)
    then(ours, theirs)
    check_gradients(then, then.translator[0].weight, lambda: then(ours, theirs))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_each_part_moves_only_in_its_time(pair, build, outputs, kind):
    """With momentum and weight decay: a gradient of 0 would still move what is to stand still."""
    loss = build(FT, *pair, paraphraser=3)
    optimizer = make_optimizer([loss], kind, 0.1)
    set_rate(optimizer, 0.1)
    moved = []
    for _ in range(5):
        before = {name: p.detach().clone() for name, p in loss.named_parameters()}
        optimizer.zero_grad(set_to_none=True)
        loss(*map(outputs, pair)).backward()
        optimizer.step()
        moved.append({name.partition(".")[0] for name, p in loss.named_parameters() if not p.equal(before[name])})
    assert moved == [{"encoder", "decoder"}] * 3 + [{"translator"}] * 2


def test_a_check_is_no_step_and_the_count_is_in_the_state(pair, build, outputs):
    ours, theirs = map(outputs, pair)
    loss = build(FT, *pair, paraphraser=2)
    with torch.no_grad():
        first = [loss(ours, theirs).item() for _ in range(4)]
    assert len(set(first)) == 1
    loss(ours, theirs)
    resumed = build(FT, *pair, paraphraser=2)
    resumed.load_state_dict(loss.state_dict())
    assert resumed(ours, theirs).item() == first[0]
    loss(ours, theirs)
    assert resumed(ours, theirs).item() == loss(ours, theirs).item() != first[0]


def test_neither_the_batchs_order_nor_the_scale_of_a_factor_matters(pair, build, outputs, check_permutation):
    loss = build(FT, *pair, paraphraser=1)
    loss(*map(outputs, pair))
    once = check_permutation(loss, *pair)
    with torch.no_grad():  # leaky ReLU keeps a positive factor
        loss.translator[-2].weight *= 3
        loss.translator[-2].bias *= 3
    assert loss(*map(outputs, pair)).item() == pytest.approx(once, rel=1e-9)


def test_zero_where_translator_and_student_are_paraphraser_and_teacher(pair, build, outputs):
    _, teacher = pair
    loss = build(FT, teacher, teacher, paraphraser=1)
    loss(outputs(teacher), outputs(teacher))
    loss.translator.load_state_dict(loss.encoder.state_dict())
    assert loss(outputs(teacher), outputs(teacher)).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("batch", [1, 3])
def test_is_finite_on_zeros(outputs, batch):
    zeros = {"stage1": np.zeros((batch, 4, 3, 3))}
    loss = FT(paraphraser=1)
    loss.setup(outputs(zeros), outputs(zeros))
    for part in loss.parameters():
        if part.ndim == 1:
            torch.nn.init.zeros_(part)  # so that the factors are 0 too
    for _ in range(2):
        student = outputs(zeros, torch.float32, grad=True)
        value = loss(student, outputs(zeros, torch.float32))
        value.backward()
        assert value.item() == 0
    assert student.features["stage1"].grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_bf16_is_close_to_float32_once_the_paraphraser_has_learnt(pair, build, outputs, check_close_in_bf16):
    loss = build(FT, *pair, paraphraser=1)
    loss(*map(outputs, pair))
    check_close_in_bf16(loss, *pair)


def test_refuses(pair, build):
    for options, match in (({"rate": 0.0}, "^rate=0"), ({"paraphraser": 0}, "^paraphraser=0 is not at least 1")):
        with pytest.raises(RequestError, match=match):
            FT(**options)
    with pytest.raises(RequestError, match=r"^stage=2 is not one of the 1 stages"):
        build(FT, *pair, stage=2)
