import numpy as np
import pytest
import torch

from dfkd.distill.losses.nst import NST
from dfkd.errors import RequestError


@pytest.fixture
def maps(rng):
    """Two stages: channels outnumber pixels in the last one, and not in the first, which is pooled."""
    student = {"stage1": (2, 3, 4, 4), "stage2": (2, 5, 1, 3)}
    teacher = {"stage1": (2, 4, 2, 2), "stage2": (2, 4, 1, 3)}
    return tuple({name: rng.normal(size=size) for name, size in side.items()} for side in (student, teacher))


def neurons(image):
    return [channel.ravel() / np.linalg.norm(channel) for channel in image]


def discrepancy(ours, theirs, kernel):
    def mean(a, b):
        return sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))

    return mean(theirs, theirs) + mean(ours, ours) - 2 * mean(theirs, ours)


KERNELS = {"poly": lambda x, y: (x @ y) ** 2, "linear": lambda x, y: x @ y}


@pytest.mark.parametrize("kernel", ["poly", "linear", "gaussian"])
@pytest.mark.parametrize("stage", [1, 2])
def test_discrepancy_of_the_channels(maps, prove, kernel, stage):
    student, teacher = maps
    name = f"stage{stage}"

    def pooled(x):
        return x.reshape(2, 3, 2, 2, 2, 2).mean(axis=(3, 5)) if stage == 1 else x

    widths = []  # of the gaussian, from the point where the gradient is taken: it counts as constant
    for b in range(2):
        pairs = [(x, y) for x in neurons(teacher[name][b]) for y in neurons(pooled(student[name])[b])]
        widths.append(sum(((x - y) ** 2).sum() for x, y in pairs) / len(pairs))

    def formula(s):
        total = 0.0
        for b in range(2):

            def gaussian(x, y, b=b):
                return np.exp(-((x - y) ** 2).sum() / (2 * widths[b]))

            k = KERNELS.get(kernel, gaussian)
            total += discrepancy(neurons(pooled(s[name])[b]), neurons(teacher[name][b]), k) / 2
        return total

    prove(NST(kernel, stage), student, teacher, formula)


def test_the_last_stage_is_the_default(maps, outputs):
    values = [NST(stage=stage)(*map(outputs, maps)).item() for stage in ("last", 1, 2)]
    assert NST()(*map(outputs, maps)).item() == values[0] == values[2] != values[1]


@pytest.mark.parametrize("kernel", ["poly", "linear", "gaussian"])
@pytest.mark.parametrize("stage", [1, 2])
class TestEveryKernel:
    def test_is_zero_at_equality(self, maps, outputs, kernel, stage):
        for dtype, most in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            x = outputs(maps[0], dtype)
            assert NST(kernel, stage)(x, x).item() == pytest.approx(0, abs=most)

    def test_the_order_of_channels_and_batch_and_the_scale_of_a_channel_do_not_matter(
        self, maps, outputs, kernel, stage
    ):
        student, teacher = maps
        once = NST(kernel, stage)(outputs(student), outputs(teacher)).item()
        scaled = {name: (x * (1 + np.arange(x.shape[1]))[:, None, None])[:, ::-1].copy() for name, x in student.items()}
        assert NST(kernel, stage)(outputs(scaled), outputs(teacher)).item() == pytest.approx(once, rel=1e-9)
        turned = [{name: x[::-1].copy() for name, x in side.items()} for side in maps]
        assert NST(kernel, stage)(*map(outputs, turned)).item() == pytest.approx(once, rel=1e-9)

    def test_bf16_is_close_to_float32(self, maps, outputs, kernel, stage):
        exact, low = (
            NST(kernel, stage)(*(outputs(side, dtype) for side in maps)) for dtype in (torch.float32, torch.bfloat16)
        )
        assert low.dtype == torch.float32
        assert low.item() == pytest.approx(exact.item(), rel=0.03)


@pytest.mark.parametrize("kernel", ["poly", "linear", "gaussian"])
@pytest.mark.parametrize("case", ["zeros", "dead", "constant", "one"])
def test_is_finite_with_a_bounded_gradient(outputs, rng, kernel, case):
    x = rng.normal(size=(1 if case == "one" else 3, 4, 3, 3))
    ours = {"zeros": 0 * x, "dead": x * np.array([0, 1, 0, 1])[:, None, None], "constant": 0 * x + 1, "one": x}[case]
    for theirs in (ours, x):
        student = outputs({"stage1": ours}, torch.float32, grad=True)
        value = NST(kernel)(student, outputs({"stage1": theirs}, torch.float32))
        value.backward()
        assert value.isfinite()
        assert student.features["stage1"].grad.abs().max() < 10


def test_refuses_a_stage_that_there_is_not(maps, outputs):
    with pytest.raises(RequestError, match="nst:stage=3 is not one of the 2 stages"):
        NST(stage=3)(*map(outputs, maps))
