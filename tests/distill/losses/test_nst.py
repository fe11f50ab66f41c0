import numpy as np
import pytest
import torch

from dfkd.distill.losses.nst import NST
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(normal):
    """Two stages: channels outnumber pixels in the last one, and not in the first, which is pooled."""
    student = {"stage1": (2, 3, 4, 4), "stage2": (2, 5, 1, 3)}
    teacher = {"stage1": (2, 4, 2, 2), "stage2": (2, 4, 1, 3)}
    return normal(student, teacher)


def neurons(image):
    return [channel.ravel() / np.linalg.norm(channel) for channel in image]


def discrepancy(ours, theirs, kernel):
    def mean(a, b):
        return sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))

    return mean(theirs, theirs) + mean(ours, ours) - 2 * mean(theirs, ours)


KERNELS = {"poly": lambda x, y: (x @ y) ** 2, "linear": lambda x, y: x @ y}


@pytest.mark.parametrize("kernel", ["poly", "linear", "gaussian"])
@pytest.mark.parametrize("stage", [1, 2])
def test_discrepancy_of_the_channels(pair, check_formula, kernel, stage):
    student, teacher = pair
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

    check_formula(NST(kernel, stage), student, teacher, formula)


def test_the_last_stage_is_the_default(pair, outputs):
    values = [NST(stage=stage)(*map(outputs, pair)).item() for stage in ("last", 1, 2)]
    assert NST()(*map(outputs, pair)).item() == values[0] == values[2] != values[1]


@pytest.mark.parametrize("kernel", ["poly", "linear", "gaussian"])
@pytest.mark.parametrize("stage", [1, 2])
class TestEveryKernel:
    def test_is_zero_at_equality(self, pair, check_zero_at_equality, kernel, stage):
        for dtype, most in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            check_zero_at_equality(NST(kernel, stage), pair[0], dtype, most)

    def test_the_order_of_channels_and_batch_and_the_scale_of_a_channel_do_not_matter(
        self, pair, outputs, check_permutation, kernel, stage
    ):
        student, teacher = pair
        once = check_permutation(NST(kernel, stage), student, teacher)
        scaled = {name: (x * (1 + np.arange(x.shape[1]))[:, None, None])[:, ::-1].copy() for name, x in student.items()}
        assert NST(kernel, stage)(outputs(scaled), outputs(teacher)).item() == pytest.approx(once, rel=1e-9)

    def test_bf16_is_close_to_float32(self, pair, check_close_in_bf16, kernel, stage):
        check_close_in_bf16(NST(kernel, stage), *pair)


@pytest.mark.parametrize("kernel", ["poly", "linear", "gaussian"])
def test_is_finite_with_a_bounded_gradient(pair, check_survives, kernel):
    check_survives(NST(kernel), *pair, most=10)


def test_refuses_a_stage_that_there_is_not(pair, outputs):
    with pytest.raises(RequestError, match=r"^stage=3 is not one of the 2 stages"):
        NST(stage=3)(*map(outputs, pair))
