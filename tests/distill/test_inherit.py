import pytest
import torch
from torch import nn

from dfkd.distill.inherit import inherit
from dfkd.errors import RequestError
from dfkd.models.load import load_model


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
    said = inherit(student, teacher)
    theirs = teacher.module.state_dict()
    for name, value in student.module.state_dict().items():
        assert torch.equal(value, theirs[name])
        assert value.data_ptr() != theirs[name].data_ptr()
    layers = 2 + 3 * 4 + 1  # stem and its norm, two convolutions and norms a block, the classifier
    assert said == f"--init teacher: {layers} of the student's {layers} layers begin as the teacher's"


def test_a_layer_of_another_shape_stays_whole(models):
    student, teacher = models("cifar_resnet:depth=8,width=4,num_classes=10", "cifar_resnet:depth=8,width=4")
    teacher.module.linear = nn.Linear(16, 10, bias=False)  # the same weight's shape, and no bias to go with it
    teacher.module.layer2[0].bn1 = nn.BatchNorm2d(9)
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    assert "13 of the student's 15 layers" in inherit(student, teacher)
    for name, value in student.module.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(("linear.", "layer2.0.bn1."))


def test_another_width_shares_nothing_though_some_biases_would_fit(models):
    student, teacher = models("cifar_resnet:depth=8,width=4", "cifar_resnet:depth=8,width=8")
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    with pytest.raises(RequestError, match="no layer of --student cifar_resnet:depth=8,width=4 has the name and shape"):
        inherit(student, teacher)
    assert all(torch.equal(value, before[name]) for name, value in student.module.state_dict().items())
