"""Be your own teacher: the heads, layer by layer, against NumPy; who learns from whom."""

import numpy as np
import pytest
import torch

from dfkd.distill.losses import BYOT
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(normal):
    """Three stages of a student: a quarter, half and all of the way to the deepest resolution."""
    return normal(
        {"stage1": (2, 1, 5, 6), "stage2": (2, 1, 4, 3), "stage3": (2, 2, 2, 2), "logits": (2, 3)},
        {"logits": (2, 3)},
    )


def head_of(own, number, x, maps, size):
    """The logits and the map of a head."""
    block = 0
    while f"heads.{number}.shrink.{block}.0.weight" in own:
        name = f"heads.{number}.shrink.{block}"
        x = maps.conv(x, own[f"{name}.0.weight"])[:, :, ::2, ::2]
        x = np.maximum(maps.norm(x, own[f"{name}.1.weight"], own[f"{name}.1.bias"]), 0)
        block += 1
    x = maps.pool(x, *size)
    name = f"heads.{number}.widen"
    x = maps.conv(x, own[f"{name}.0.weight"])
    x = np.maximum(maps.norm(x, own[f"{name}.1.weight"], own[f"{name}.1.bias"]), 0)
    return x.mean(axis=(2, 3)) @ own[f"heads.{number}.linear.weight"].T + own[f"heads.{number}.linear.bias"], x


def test_value_and_gradients(pair, build, check_formula, softmax, maps):
    student, teacher = pair
    loss = build(BYOT, student, teacher, alpha=0.4, temperature=2.0, features=0.7)
    assert [len(head.shrink) for head in loss.heads] == [2, 1]
    label = teacher["logits"].argmax(axis=1)
    target, deepest = softmax(student["logits"] / 2), student["stage3"].copy()

    def cross_entropy(logits):
        return -np.mean([np.log(softmax(logits)[i, label[i]]) for i in range(2)])

    def formula(arrays):
        own = {name: value.numpy() for name, value in loss.state_dict().items()}
        total = cross_entropy(arrays["logits"])
        for number, stage in enumerate(("stage1", "stage2")):
            said, feature = head_of(own, number, arrays[stage], maps, (2, 2))
            q = softmax(said / 2)
            soft = np.mean([sum(target[i] * np.log(target[i] / q[i])) for i in range(2)])
            total += 0.6 * cross_entropy(said) + 0.4 * 4 * soft + 0.7 * ((feature - deepest) ** 2).mean()
        return total

    check_formula(loss, student, teacher, formula, own=True)


def test_the_deepest_stage_and_the_output_learn_nothing_from_the_heads(pair, build, outputs):
    student, teacher = pair
    loss = build(BYOT, student, teacher)
    ours = outputs(student, grad=True)
    loss(ours, outputs(teacher)).backward()
    assert ours.features["stage3"].grad is None
    alone = outputs(student["logits"], grad=True)
    torch.nn.functional.cross_entropy(alone.logits, outputs(teacher).logits.argmax(dim=1)).backward()
    assert torch.equal(ours.logits.grad, alone.logits.grad)


def test_heads_improve_with_depth(rng, outputs):
    """Where each stage tells the class more clearly than the one before, so do the heads that learn from them."""
    label = rng.integers(0, 4, 32)
    sure = np.eye(4)[label] * 9

    def stage(noise, size):
        signal = np.broadcast_to(np.eye(4)[label][:, :, None, None], (32, 4, size, size))
        return signal + noise * rng.normal(size=(32, 4, 1, 1))

    student = {"stage1": stage(0.9, 3), "stage2": stage(0.5, 3), "stage3": stage(0.0, 2), "logits": sure}
    torch.manual_seed(0)
    loss = BYOT()
    loss.setup(outputs(student, torch.float32), outputs({"logits": sure}, torch.float32))
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    ours, theirs = outputs(student, torch.float32), outputs({"logits": sure}, torch.float32)
    for _ in range(25):
        optimizer.zero_grad()
        loss(ours, theirs).backward()
        optimizer.step()
    said = [logits.argmax(dim=1) for logits in loss.eval().exits(ours)]
    assert len(said) == 2
    shares = [float((told == torch.from_numpy(label)).float().mean()) for told in said]
    assert 0.5 < shares[0] < shares[1], shares


def test_a_student_of_one_stage_is_refused(normal, outputs):
    (one,) = normal({"stage1": (2, 3, 4, 4), "logits": (2, 5)})
    with pytest.raises(RequestError, match="feature maps of one resolution"):
        BYOT().setup(outputs(one), outputs(one))
    with pytest.raises(RequestError, match="alpha=0 is not above 0"):
        BYOT(alpha=0.0)


def test_is_finite_where_features_are_degenerate(pair, build, check_survives):
    student, teacher = pair
    check_survives(build(BYOT, student, teacher), student, teacher)


def test_the_batch_may_be_permuted(pair, build, check_permutation):
    check_permutation(build(BYOT, *pair), *pair)
