"""What the methods share that fit a generator to every batch; FastDFKD stands for all."""

import pytest
import torch

from dfkd.generators.base import quantize
from dfkd.system.errors import RequestError

SMALL = "fastdfkd:latent=6,width=4,steps=4,warmup=2"


def test_the_images_with_the_lowest_loss_of_all_steps_are_kept(make):
    method = make(SMALL)
    images = torch.rand(8, method.task.batch, 1, 8, 8)
    steps = iter(zip(images, torch.tensor([2.0, 1.0, 3.0, 1.5, 9.0, 8.0, 9.0, 8.5]), strict=True))
    offer = method.underway.offer
    method.underway.offer = lambda *_: offer(*next(steps))
    for _ in range(8):
        method.update(None)
    assert torch.equal(method.bank.pixels, torch.cat([quantize(images[1]), quantize(images[5])]))


def test_images_are_banked_with_the_classes_that_were_wanted(make):
    method = make(SMALL, wanted=torch.tensor([0.0, 1, 0, 0]))
    for _ in range(4):
        method.update(None)
    assert method.bank.labels.tolist() == [1] * method.task.batch


def test_the_student_is_asked_after_the_warmup_alone(make, student):
    asked = []

    def judge(view):
        asked.append(method.batches)
        return student(view)

    method = make(SMALL)
    metrics = [method.update(judge) for _ in range(12)]
    assert asked == [2] * 4
    assert ["adversarial" in m for m in metrics] == [False] * 8 + [True] * 4
    assert method.first == 8 and method.turns == 4


def test_without_the_adversarial_term_nobody_asks_the_student(make):
    method = make(SMALL + ",adversarial=0")

    def judge(view):
        raise AssertionError

    for _ in range(9):
        assert "adversarial" not in method.update(judge)


def test_views_are_shifted_and_gradients_come_back(make):
    method = make(SMALL, channels=3)
    images = torch.rand(40, 3, 8, 8, requires_grad=True)
    view = method.augmented(images)
    assert view.shape == images.shape
    (gradient,) = torch.autograd.grad(view.sum(), images)
    assert set(gradient.unique().tolist()) == {0, 1}, "a pixel is in the view, or was cut off"
    assert torch.allclose((gradient * images).sum(), view.sum(), atol=1e-3)
    assert any(torch.equal(a, b) for a, b in zip(images.flip(3), view, strict=True)), "mirrored only"
    straight = make(SMALL + ",flip=false").augmented(images)
    assert not any(torch.equal(a, b) for a, b in zip(images.flip(3), straight, strict=True))


@pytest.mark.parametrize("option", ["steps=0", "every=0", "warmup=0", "one_hot=-1", "statistics=-1", "adversarial=-1"])
def test_options_out_of_range_are_named(make, option):
    name, value = option.split("=")
    with pytest.raises(RequestError, match=f"fastdfkd: {name}={value} is not at least"):
        make(f"fastdfkd:latent=6,width=4,{option}")


def test_a_teacher_without_batchnorm_is_refused(make):
    with pytest.raises(
        RequestError, match="fastdfkd: it reads the statistics of the teacher's BatchNorm layers"
    ) as error:
        make(SMALL, architecture="tests.generators.test_inversion.plain")
    assert "\n" not in str(error.value)


def plain(num_classes, in_channels):
    """A network without BatchNorm."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_channels * 64, num_classes))
