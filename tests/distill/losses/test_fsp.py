import numpy as np
import pytest
import torch

from dfkd.distill.losses.fsp import FSP
from dfkd.errors import RequestError


@pytest.fixture
def maps(rng):
    """Widths and resolutions differ between the networks in the first stage; in the second, between its ends."""
    student = {"begin1": (2, 3, 2, 4), "stage1": (2, 2, 2, 4), "begin2": (2, 3, 4, 4), "stage2": (2, 2, 2, 2)}
    teacher = {"begin1": (2, 4, 3, 3), "stage1": (2, 5, 3, 3), "begin2": (2, 3, 2, 2), "stage2": (2, 2, 2, 2)}
    return tuple({name: rng.normal(size=size) for name, size in side.items()} for side in (student, teacher))


@pytest.fixture
def ready(outputs):
    def make(student, teacher):
        loss = FSP()
        loss.setup(outputs(student), outputs(teacher))
        return loss.double()

    return make


def matrix(first, last):
    """Of one image: entry i, j is the mean over the pixels of channel i times channel j."""
    g = np.zeros((len(first), len(last)))
    for i in range(len(first)):
        for j in range(len(last)):
            g[i, j] = sum(a * b for a, b in zip(first[i].ravel(), last[j].ravel(), strict=True)) / first[i].size
    return g


def seen(layer, image):
    return np.einsum("oc,chw->ohw", layer.weight.detach().numpy()[:, :, 0, 0], image)


def test_matrices_of_every_stage(maps, ready, prove):
    student, teacher = maps
    loss = ready(student, teacher)

    def formula(s):
        total = 0.0
        for b in range(2):
            ours = matrix(seen(loss.first[0], s["begin1"][b]), seen(loss.last[0], s["stage1"][b]))
            total += ((ours - matrix(teacher["begin1"][b], teacher["stage1"][b])) ** 2).sum() / 2
            pooled = s["begin2"][b].reshape(3, 2, 2, 2, 2).max(axis=(2, 4))
            ours = matrix(pooled, s["stage2"][b])
            total += ((ours - matrix(teacher["begin2"][b], teacher["stage2"][b])) ** 2).sum() / 2
        return total

    prove(loss, student, teacher, formula)


def test_only_differing_widths_are_projected_and_the_projections_learn(maps, ready, outputs):
    loss = ready(*maps)
    assert {name for name, _ in loss.named_parameters()} == {"first.0.weight", "last.0.weight"}
    loss(*map(outputs, maps)).backward()
    weight = loss.last[0].weight
    values = []
    for shift in (1e-5, -1e-5):
        with torch.no_grad():
            weight[3, 1] += shift
            values.append(loss(*map(outputs, maps)).item())
            weight[3, 1] -= shift
    assert weight.grad[3, 1].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_zero_at_equality_and_neither_pixels_nor_batch_have_an_order(maps, ready, outputs):
    student, teacher = maps
    assert ready(teacher, teacher)(outputs(teacher), outputs(teacher)).item() == 0
    loss = ready(student, teacher)
    once = loss(outputs(student), outputs(teacher)).item()
    turned = [{name: x[::-1].copy() for name, x in side.items()} for side in maps]
    assert loss(*map(outputs, turned)).item() == pytest.approx(once, rel=1e-9)
    mirrored = {name: x[..., ::-1].copy() for name, x in student.items()}
    assert loss(outputs(mirrored), outputs(teacher)).item() == pytest.approx(once, rel=1e-9)


@pytest.mark.parametrize("batch", [1, 3])
def test_is_finite_on_zeros(outputs, batch):
    zeros = {"begin1": np.zeros((batch, 2, 2, 2)), "stage1": np.zeros((batch, 3, 2, 2))}
    loss = FSP()
    loss.setup(outputs(zeros), outputs(zeros))
    student = outputs(zeros, torch.float32, grad=True)
    value = loss(student, outputs(zeros, torch.float32))
    value.backward()
    assert value.item() == 0
    assert all(x.grad.isfinite().all() for x in student.features.values())


def test_bf16_is_close_to_float32(maps, outputs):
    loss = FSP()
    loss.setup(*map(outputs, maps))
    exact, low = (loss(*(outputs(side, dtype) for side in maps)) for dtype in (torch.float32, torch.bfloat16))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=0.02)


def test_refuses_ends_without_beginnings(maps, ready):
    fewer = [{name: x for name, x in side.items() if name != "begin2"} for side in maps]
    with pytest.raises(RequestError, match="1 maps that begin a stage and 2 that end one"):
        ready(*fewer)
