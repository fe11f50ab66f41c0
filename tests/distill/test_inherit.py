from dataclasses import replace

import pytest
import torch
from torch import nn

from dfkd.config.stages.shared import Input
from dfkd.distill.init import channels
from dfkd.distill.init.channels import evenly, largest
from dfkd.distill.init.inherit import heir, inherit
from dfkd.models import cifar_resnet
from dfkd.models.features.channel_groups import channel_groups
from dfkd.models.load import load_model
from dfkd.models.own import OwnNetwork
from dfkd.system.errors import RequestError


@pytest.fixture
def models():
    """Models of MODEL texts, each with random weights and statistics of its own."""

    def make(*texts):
        made = []
        for seed, text in enumerate(texts):
            torch.manual_seed(seed)
            model = load_model(text)
            for value in model.module.state_dict().values():
                value.copy_(torch.rand(value.shape) * 9)
            made.append(model)
        return made

    return make


def test_a_shallower_student_begins_with_the_first_blocks_of_every_stage(models):
    student, teacher = models("cifar_resnet:depth=8,width=4", "cifar_resnet:depth=20,width=4")
    said = inherit(student, teacher).summary
    theirs = teacher.module.state_dict()
    for name, value in student.module.state_dict().items():
        assert torch.equal(value, theirs[name])
        assert value.data_ptr() != theirs[name].data_ptr()
    layers = 2 + 3 * 4 + 1  # stem and its norm, two convolutions and norms a block, the classifier
    assert said == f"{layers} of the student's {layers} layers begin as the teacher's"


def test_a_layer_with_other_tensors_or_kernels_stays_whole(models):
    student, teacher = models("cifar_resnet:depth=8,width=4,num_classes=10", "cifar_resnet:depth=8,width=4")
    teacher.module.linear = nn.Linear(16, 10, bias=False)  # the same weight's shape, and no bias to go with it
    teacher.module.layer2[0].conv1 = nn.Conv2d(4, 8, 5, bias=False)
    teacher.module.layer2[0].bn1 = nn.BatchNorm2d(3)
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    assert "12 of the student's 15 layers" in inherit(student, teacher).summary
    for name, value in student.module.state_dict().items():
        kept = name.startswith(("linear.", "layer2.0.bn1.", "layer2.0.conv1."))
        assert torch.equal(value, before[name]) == kept, name


def test_a_narrower_student_begins_with_the_same_channels_everywhere(models):
    student, teacher = models("cifar_resnet:depth=8,width=4", "cifar_resnet:depth=8,width=6")
    inherited = inherit(student, teacher)
    ours, theirs = student.module.state_dict(), teacher.module.state_dict()
    some = {  # the shortcuts pad channels, which keeps the evenly spaced ones in order
        6: [0, 1, 3, 4],
        12: [0, 1, 3, 4, 6, 7, 9, 10],
        24: [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22],
    }
    assert torch.equal(ours["conv1.weight"], theirs["conv1.weight"][some[6]])
    assert torch.equal(ours["layer2.0.bn2.running_var"], theirs["layer2.0.bn2.running_var"][some[12]])
    torch.testing.assert_close(
        ours["linear.weight"], theirs["linear.weight"][:, some[24]] * 1.5
    )  # 16 weigh what 24 did
    assert torch.equal(ours["linear.bias"], theirs["linear.bias"])
    first, norm, second = (theirs[f"layer3.0.{name}.weight"].double() for name in ("conv1", "bn1", "conv2"))
    importance = [float(first[c].square().sum() + norm[c] ** 2 + second[:, c].square().sum()) for c in range(24)]
    inner = sorted(sorted(range(24), key=lambda c: -importance[c])[:16])
    assert inner != some[24]
    assert torch.equal(ours["layer3.0.bn1.running_mean"], theirs["layer3.0.bn1.running_mean"][inner])
    expected = theirs["layer3.0.conv1.weight"][inner][:, some[12]] * 1.5
    torch.testing.assert_close(ours["layer3.0.conv1.weight"], expected)
    expected = theirs["layer3.0.conv2.weight"][some[24]][:, inner] * 1.5
    torch.testing.assert_close(ours["layer3.0.conv2.weight"], expected)
    assert inherited.channels.of(("layer3.0.conv1", 0), 24, 16).tolist() == inner
    assert inherited.channels.of(("layer3.0.conv2", 0), 24, 16).tolist() == some[24]
    assert inherited.summary.endswith("15 layers begin as the teacher's, 15 of them with a part of the channels")


def test_inherit__layers_whose_outputs_are_added__keep_the_same_important_channels(models):
    student, teacher = models(
        "cifar_resnet:depth=8,width=4,shortcut=conv", "cifar_resnet:depth=8,width=6,shortcut=conv"
    )
    stream = [f"layer2.0.{name}" for name in ("conv2", "bn2", "shortcut")]
    theirs, loud = teacher.module.state_dict(), [0, 2, 3, 5, 7, 8, 10, 11]
    with torch.no_grad():
        for name in stream:
            theirs[f"{name}.weight"][loud] *= 100
    inherited = inherit(student, teacher)
    ours = student.module.state_dict()
    assert torch.equal(ours["layer2.0.bn2.weight"], theirs["layer2.0.bn2.weight"][loud])
    for port in [(name, 0) for name in stream] + [("layer3.0.conv1", 1), ("layer3.0.shortcut", 1)]:
        assert inherited.channels.of(port, 12, 8).tolist() == loud


def test_inherit__a_student_of_its_teachers_width__needs_no_choice(models, monkeypatch):
    monkeypatch.setattr("dfkd.distill.init.inherit.largest", None)
    student, teacher = models("cifar_resnet:depth=8,width=4", "cifar_resnet:depth=20,width=4")
    assert inherit(student, teacher).summary.endswith("begin as the teacher's")


def test_a_wider_student_shares_nothing_though_some_biases_would_fit(models):
    student, teacher = models("cifar_resnet:depth=8,width=8", "cifar_resnet:depth=8,width=4")
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    with pytest.raises(RequestError, match="no layer of the student cifar_resnet:depth=8,width=8 has the name"):
        inherit(student, teacher)
    assert all(torch.equal(value, before[name]) for name, value in student.module.state_dict().items())


@pytest.mark.parametrize(
    ("total", "count", "numbers"), [(6, 6, [0, 1, 2, 3, 4, 5]), (6, 2, [0, 3]), (7, 3, [0, 2, 4]), (5, 1, [0])]
)
def test_evenly_spaced_numbers(total, count, numbers):
    assert evenly(total, count).tolist() == numbers


@pytest.mark.parametrize(
    ("student", "part"),
    [
        ("cifar_resnet:depth=8,width=4", True),
        ("cifar_resnet:depth=14,width=8", True),
        ("cifar_resnet:depth=20,width=8", False),  # the teacher itself
        ("cifar_resnet:depth=26,width=4", False),
        ("wide_resnet:depth=10,width=1", False),
    ],
)
def test_what_is_a_part_of_the_teacher(student, part):
    assert heir(load_model(student), load_model("cifar_resnet:depth=20,width=8")) == part


class Grouped(nn.Module):
    def __init__(self, width, groups, outputs):
        super().__init__()
        self.conv, self.grouped = nn.Conv2d(3, width, 3), nn.Conv2d(width, outputs, 3, groups=groups)


@pytest.mark.parametrize(
    ("ours", "theirs", "part"),
    [
        ((8, 1, 8), (16, 1, 16), True),
        ((8, 2, 8), (16, 2, 16), False),
        ((16, 2, 16), (16, 2, 16), False),
        ((8, 8, 8), (16, 16, 16), True),  # depthwise
        ((8, 8, 8), (8, 8, 16), False),  # the teacher has two outputs for a channel
    ],
)
def test_heir__narrower_with_groups_of_channels__only_depthwise_ones_are_a_part(models, ours, theirs, part):
    student, teacher = models("lenet5_half", "lenet5")
    ours, theirs = Grouped(*ours), Grouped(*theirs)
    assert heir(replace(student, module=ours), replace(teacher, module=theirs)) == part


def test_inherit__a_narrower_depthwise_convolution_has_the_filters_of_the_channels_that_it_gets(models):
    student, teacher = models("lenet5_half", "lenet5")
    ours, theirs = Grouped(8, 8, 8), Grouped(16, 16, 16)
    inherit(replace(student, module=ours), replace(teacher, module=theirs))
    view = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(ours.grouped(ours.conv(view)), theirs.grouped(theirs.conv(view))[:, ::2])


def test_a_student_that_uses_a_layer_twice_is_an_heir(models):
    student, teacher = models("cifar_resnet:depth=8,width=4", "cifar_resnet:depth=20,width=4")
    student.module.again = student.module.linear  # a second name in its state, and no further layer
    assert heir(student, teacher)
    assert inherit(student, teacher).summary.startswith("15 of the student's 15 layers")


FIXED = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(32), nn.Flatten(), nn.Linear(72, 10)
)


@pytest.mark.parametrize(("network", "tried"), [(cifar_resnet(8, width=4), [64]), (FIXED, [64, 96])])
def test_largest__looks_for_groups_on_small_images_if_the_network_takes_them(monkeypatch, network, tried):
    """At 224 pixels a ResNet-50 takes 8 s, also if a complete run is named again."""
    sides = []
    monkeypatch.setattr(channels, "channel_groups", lambda *given: sides.append(given[2]) or channel_groups(*given))
    student = load_model(OwnNetwork(network), Input(image_size=96), classes=10, channels=3)
    largest(student, {})
    assert sides == tried
