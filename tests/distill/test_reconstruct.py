import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfkd.distill.inherit import inherit
from dfkd.distill.reconstruct import images_for, reconstruct
from dfkd.models.load import load_model


def chain(*layers):
    """A network of these layers, named 0, 1, ..., in evaluation mode."""
    return nn.Sequential(*layers).eval()


@pytest.fixture
def view():
    return torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def test_a_layer_is_fitted_by_least_squares_to_the_teachers_channels(view):
    torch.manual_seed(0)
    teacher = chain(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
    student = chain(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    with torch.no_grad():  # the first layer can be fitted exactly
        shares = reconstruct(student, teacher, view)
        assert torch.allclose(student[0].weight, teacher[0].weight[::2], atol=1e-3)
        assert torch.allclose(student[0].bias, teacher[0].bias[::2], atol=1e-3)
        hidden, wanted = student[1](student[0](view)), teacher(view)[:, ::2]
    patches = F.unfold(hidden, 3, padding=1).transpose(1, 2).flatten(0, 1)
    with_one = torch.cat([patches, torch.ones(len(patches), 1)], dim=1).double()
    rows = wanted.flatten(2).transpose(1, 2).flatten(0, 1).double()
    exact = torch.linalg.lstsq(with_one, rows).solution
    got = student[2](hidden).flatten(2).transpose(1, 2).flatten(0, 1).double()
    missed, least = ((got - rows) ** 2).mean(), ((with_one @ exact - rows) ** 2).mean()
    assert least < missed < least * 1.01  # the ridge and the drawn places cost less than a hundredth
    assert list(shares) == ["0", "2"]
    assert shares["0"] > 0.999
    assert shares["2"] == pytest.approx(float(1 - least / rows.var(0, correction=0).mean()), abs=0.01)


def test_a_student_like_its_teacher_stays_as_it_is(view):
    teacher = load_model("cifar_resnet:depth=8,width=4").module
    student = copy.deepcopy(teacher)
    before = {name: value.clone() for name, value in student.named_parameters()}
    student.train()  # as BatchNorm's statistics are taken from the view, the teacher has to have the same
    teacher.train()
    with torch.no_grad():
        for norm in teacher.modules():
            norm.momentum = 1.0
        teacher(view)
    shares = reconstruct(student, teacher, view)
    assert len(shares) == 8
    for name, value in student.named_parameters():
        torch.testing.assert_close(value, before[name], atol=2e-2, rtol=2e-2)
    assert not student.training
    assert not teacher.training


def test_a_fitted_student_answers_more_like_its_teacher_than_one_with_its_channels(view):
    torch.manual_seed(1)
    teacher, student = load_model("cifar_resnet:depth=8,width=8"), load_model("cifar_resnet:depth=8,width=4")
    inherit(student, teacher)
    thinned = copy.deepcopy(student.module)
    reconstruct(student.module, teacher.module, view)
    unseen = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        wanted = teacher.module(unseen)
        fitted, before = ((net(unseen) - wanted).square().mean() for net in (student.module, thinned))
    assert fitted < before / 2


def test_a_convolution_without_bias_is_fitted_up_to_a_constant(view):
    torch.manual_seed(0)
    teacher, student = chain(nn.Conv2d(3, 2, 1)), chain(nn.Conv2d(3, 2, 1, bias=False))
    teacher[0].bias.data.fill_(7.0)
    assert reconstruct(student, teacher, view + 1)["0"] > 0.999
    assert torch.allclose(student[0].weight, teacher[0].weight, atol=1e-3)


def test_a_linear_layer_without_bias_makes_the_best_of_it():
    x = torch.randn(512, 8, 1, 1, generator=torch.Generator().manual_seed(5)) + 1
    teacher, student = chain(nn.Flatten(), nn.Linear(8, 2)), chain(nn.Flatten(), nn.Linear(8, 2, bias=False))
    teacher[1].bias.data.fill_(7.0)
    reconstruct(student, teacher, x)
    with torch.no_grad():
        best = torch.linalg.lstsq(x.flatten(1), teacher(x)).solution.T
    torch.testing.assert_close(student[1].weight.data, best, atol=0.02, rtol=0.02)
    assert (best - teacher[1].weight).abs().min() > 0.1


def test_a_stride_a_dilation_and_tokens_are_fitted_at_the_right_places(view):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2), nn.Flatten(2), nn.Linear(16, 5)]
    teacher = chain(*layers)
    student = copy.deepcopy(teacher)
    for value in student.parameters():
        value.data.normal_()
    assert min(reconstruct(student, teacher, view).values()) > 0.999
    torch.testing.assert_close(student(view), teacher(view), atol=0.02, rtol=0.02)


def test_what_cannot_be_compared_stays_as_it_is(view):
    torch.manual_seed(0)
    same = (
        nn.Conv2d(3, 3, 3, padding=1, groups=3),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 1, padding_mode="reflect"),
    )
    teacher = chain(*same, nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 2))
    student = chain(*same, nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 1025, 1), nn.Flatten(), nn.Linear(9225, 2))
    before = {name: value.clone() for name, value in student.named_parameters()}
    assert reconstruct(student, teacher, view) == {}
    assert all(torch.equal(value, before[name]) for name, value in student.named_parameters())


def test_a_layer_of_the_teacher_that_is_passed_twice_is_left_out(view):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    student, teacher = Twice(), Twice()
    before = student.conv.weight.clone()
    assert reconstruct(student, teacher, view) == {}
    assert torch.equal(student.conv.weight, before)


def test_neither_the_random_state_nor_the_teacher_changes_and_no_hook_is_left(view):
    student, teacher = (
        load_model("cifar_resnet:depth=8,width=2").module,
        load_model("cifar_resnet:depth=8,width=4").module,
    )
    state, weights = torch.get_rng_state(), copy.deepcopy(teacher.state_dict())
    reconstruct(student, teacher, view)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    assert not any(
        layer._forward_hooks or layer._forward_pre_hooks for net in (student, teacher) for layer in net.modules()
    )


def test_images_without_content_leave_weights_finite():
    student, teacher = (
        load_model("cifar_resnet:depth=8,width=2").module,
        load_model("cifar_resnet:depth=8,width=4").module,
    )
    reconstruct(student, teacher, torch.zeros(8, 3, 8, 8))
    assert all(torch.isfinite(value).all() for value in student.state_dict().values())


@pytest.mark.parametrize(("side", "images"), [(28, 1024), (64, 1024), (224, 83), (512, 64)])
def test_large_images_are_fewer(side, images):
    assert images_for(side) == images
