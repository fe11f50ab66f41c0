import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfkd.distill.init.inherit import inherit
from dfkd.distill.init.reconstruct import images_for, reconstruct
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


def test_a_convolution_without_bias_is_fitted_up_to_a_constant_where_batch_norm_takes_it_away(view):
    torch.manual_seed(0)
    teacher = chain(nn.Conv2d(3, 2, 1))
    teacher[0].bias.data.fill_(7.0)
    alone, normed = (chain(nn.Conv2d(3, 2, 1, bias=False), *more) for more in ((), (nn.BatchNorm2d(2),)))
    assert reconstruct(normed, teacher, view + 1)["0"] > 0.999
    assert torch.allclose(normed[0].weight, teacher[0].weight, atol=1e-2)
    reconstruct(alone, teacher, view + 1)
    rows = (view + 1).permute(0, 2, 3, 1).flatten(0, 2)
    with torch.no_grad():
        best = torch.linalg.lstsq(rows, teacher(view + 1).permute(0, 2, 3, 1).flatten(0, 2)).solution
    torch.testing.assert_close(alone[0].weight.data[:, :, 0, 0], best.T, atol=0.05, rtol=0.05)
    assert not torch.allclose(alone[0].weight, teacher[0].weight, atol=0.5)


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
    assert min(reconstruct(student, teacher, view).values()) > 0.99
    assert (student(view) - teacher(view)).square().mean() < 0.01 * teacher(view).var()


def test_what_cannot_be_compared_stays_as_it_is(view):
    def odd():
        return nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(), nn.BatchNorm2d(4)

    torch.manual_seed(0)
    teacher = chain(*odd(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 2))
    student = chain(*odd(), nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 1025, 1), nn.Flatten(), nn.Linear(9225, 2))
    before = {name: value.clone() for name, value in student.named_parameters()}
    assert reconstruct(student, teacher, view) == {}
    assert all(torch.equal(value, before[name]) for name, value in student.named_parameters())


def test_a_layer_with_more_inputs_than_fit_in_memory_stays_as_it_is(view, monkeypatch):
    torch.manual_seed(0)
    student, teacher = (chain(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)) for _ in range(2))
    monkeypatch.setattr("dfkd.distill.init.reconstruct.WIDEST", 27)
    assert list(reconstruct(student, teacher, view)) == ["0"]


class Standardized(nn.Conv2d):
    """A convolution whose weights are scaled in its forward pass."""

    def forward(self, x):
        weight = self.weight / self.weight.std(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Plainest(nn.Conv2d):
    """A convolution with a type of its own that computes what its type says."""

    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize(("convolution", "fitted"), [(Standardized, []), (Plainest, ["0"])])
def test_reconstruct__a_type_of_its_own__fitted_where_it_computes_what_it_says(view, convolution, fitted):
    torch.manual_seed(0)
    student, teacher = (chain(convolution(3, width, 3, padding=1)) for width in (4, 8))
    before = student[0].weight.clone()
    assert list(reconstruct(student, teacher, view)) == fitted
    assert torch.equal(student[0].weight, before) == (not fitted)


class Odd(nn.Module):
    """One convolution, called in a way of its own."""

    def __init__(self, call):
        super().__init__()
        self.conv, self.call = nn.Conv2d(3, 3, 3, padding=1), call

    def forward(self, x):
        return self.call(self.conv, x)


@pytest.mark.parametrize("call", [lambda conv, x: conv(conv(x)), lambda conv, x: conv(input=x), lambda conv, x: x])
def test_a_layer_that_is_not_called_once_with_its_input_is_left_out(view, call):
    student, teacher = Odd(call), Odd(call)
    before = student.conv.weight.clone()
    assert reconstruct(student, teacher, view) == {}
    assert torch.equal(student.conv.weight, before)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch 2.11 warns of its own reader
def test_the_teacher_may_be_an_exported_program(view):
    torch.manual_seed(0)
    teacher = chain(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
    student = chain(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    other = copy.deepcopy(student)
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.unflatten(torch.export.export(teacher, (view,), dynamic_shapes=(batch,)))
    assert reconstruct(student, program, view) == pytest.approx(reconstruct(other, teacher, view), rel=1e-4)


def test_a_layer_with_as_many_inputs_as_images_does_not_learn_them_by_heart():
    generator = torch.Generator().manual_seed(0)
    hidden, noise = (torch.randn(2, 64, 64, 1, 1, generator=generator) for _ in range(2))
    teacher, student = (chain(nn.Flatten(), nn.Linear(64, 4)) for _ in range(2))
    student.load_state_dict(teacher.state_dict())

    class Noisy(nn.Module):
        """The same layer behind inputs that the student does not see."""

        def __init__(self):
            super().__init__()
            self.add_module("1", teacher[1])

        def forward(self, x):
            return self.get_submodule("1")((x + noise[0]).flatten(1))

    def error():
        return (student(hidden[1]) - teacher(hidden[1] + noise[1])).square().mean()

    with torch.no_grad():
        before = error()
        reconstruct(student, Noisy(), hidden[0])
        assert error() < 3 * before


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


@pytest.mark.parametrize(("side", "images"), [(28, 1024), (64, 512), (224, 64), (512, 64)])
def test_large_images_are_fewer(side, images):
    assert images_for(side) == images
