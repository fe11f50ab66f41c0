import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfkd.config.stages.shared import Input
from dfkd.models.fake_int8 import fake_int8
from dfkd.models.load import load_model
from dfkd.training.mode import set_mode


class Dropping(nn.Module):
    """Drops in two ways: by a layer, and by its own mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)

    def forward(self, x):
        return F.dropout(self.drop(self.norm(x)), 0.5, self.training)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("dropout", [True, False])
def test_set_mode__decides_for_statistics_and_dropout_apart(keeps, dropout):
    student, x = Dropping().eval(), torch.rand(64, 3, 4, 4) + 1
    set_mode(student, keeps, dropout)
    answers = student(x)
    assert bool((answers == 0).any()) == dropout
    assert torch.equal(student.norm.running_mean, torch.zeros(3)) == keeps
    if not dropout:
        torch.testing.assert_close(answers, student.norm(x))


@pytest.mark.parametrize("text", ["soft_tree:depth=2", "specialists:network=lenet5,groups=0+3"])
def test_set_mode__keeps_the_mode_by_which_a_network_of_dfkd_learns(text):
    student = load_model(text, Input(image_size=28), channels=1).module
    set_mode(student, True, False)
    assert student.training


def test_set_mode__an_rnn_has_gradients_on_a_gpu_in_training_mode_only():
    student = nn.Sequential(nn.LSTM(2, 3), nn.Dropout(0.5))
    set_mode(student, False, False)
    assert [layer.training for layer in student] == [True, False]


def test_set_mode__layers_in_int8_go_on_finding_their_ranges():
    student = fake_int8(load_model("lenet5", Input(image_size=28), channels=1).module, 1, 28)
    set_mode(student, True, False)
    student(torch.rand(2, 1, 28, 28))
    assert all(bool(layer.seen) for layer in student.modules() if hasattr(layer, "seen"))
