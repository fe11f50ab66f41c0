"""A divided teacher, as far as one process sees it; `tests/distributed/test_sharded.py` has two."""

import pytest
import torch
from torch import nn

from dfkd.config.stages.shared import Input
from dfkd.models import resnet18_small
from dfkd.models.classifier import Classifier
from dfkd.models.features.outputs import Outputs
from dfkd.models.load import load_model
from dfkd.models.sharded import _parts, is_sharded, shard_teacher, through_logits, undivided
from dfkd.system import ranks
from dfkd.system.device import Place
from dfkd.system.errors import RequestError

PLACE = Place(torch.device("cpu"), torch.float32)


@pytest.fixture
def model():
    return load_model("lenet5:num_classes=3,in_channels=1", Input(image_size=32))


def test_shard_teacher__with_one_process_says_that_it_changes_nothing(model, capsys):
    shard_teacher(model, PLACE)
    assert not is_sharded(model.module)
    assert "--shard-teacher changes nothing with one process" in capsys.readouterr().err


def test_shard_teacher__refuses_a_network_that_cannot_be_divided(model, monkeypatch):
    def divide(module, device):
        raise RuntimeError("aten.mm got mixed torch.Tensor and DTensor\nmore")

    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr("dfkd.models.sharded._divide", divide)
    with pytest.raises(RequestError, match=r"cannot be divided \(aten.mm got mixed torch.Tensor and DTensor\); leave"):
        shard_teacher(model, PLACE)


def test_shard_teacher__refuses_a_network_that_then_says_something_else(model, monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr("dfkd.models.sharded._divide", lambda module, device: nn.init.zeros_(next(module.parameters())))
    with pytest.raises(RequestError, match="gives other outputs when it is divided; leave it out"):
        shard_teacher(model, PLACE)


def test_parts__are_the_large_blocks_and_each_once():
    with torch.device("meta"):
        network = resnet18_small(num_classes=10)
    blocks = [block for stage in (network.layer2, network.layer3, network.layer4) for block in stage]
    parts = [*_parts(network)]
    assert {*blocks} <= {*parts} and network not in parts
    assert len(parts) == len({*parts})
    assert all(sum(p.numel() for p in part.parameters()) > 100_000 for part in parts)
    inner, outer = nn.Linear(9, 9), nn.Sequential()
    outer.append(inner)
    assert [*_parts(nn.Sequential(outer))] == [inner, outer], "FSDP takes the inner ones first"


def test_tied__features_lead_back_through_the_logits_with_a_gradient_of_zero():
    x = torch.ones(2, 3, requires_grad=True)
    reached = []
    logits = x * 2
    logits.register_hook(lambda gradient: reached.append(gradient.clone()))
    outputs = through_logits(Outputs(logits, {"last": x * 3}))
    (gradient,) = torch.autograd.grad(outputs.features["last"].sum(), x)
    assert torch.equal(gradient, torch.full((2, 3), 3.0))
    assert len(reached) == 1 and not reached[0].any()


def test_undivided__draws_no_random_numbers():
    layer = nn.Linear(3, 2)
    layer.weight.full_tensor = lambda: layer.weight  # as a divided one has it
    state = torch.get_rng_state()
    whole = undivided(layer)
    assert torch.equal(torch.get_rng_state(), state)
    assert whole is not layer and torch.equal(whole.weight, layer.weight) and torch.equal(whole.bias, layer.bias)


def test_classifier__does_not_fold_a_divided_teacher(monkeypatch):
    monkeypatch.setattr("dfkd.models.classifier.is_sharded", lambda module: True)
    teacher = load_model("cifar_resnet:depth=8,width=4,num_classes=3,in_channels=1", Input(image_size=8))
    assert Classifier(teacher, PLACE, fold=True).network is teacher.module
