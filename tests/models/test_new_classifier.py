"""Weights of another class count than a student's teacher has; the files are stand-ins for public ones."""

import pytest
import torch
from torch import nn

from dfkd.config.stages.shared import Input
from dfkd.models import cifar_resnet
from dfkd.models.load import load_model
from dfkd.models.new_classifier import keep_layers, untrained
from dfkd.system.errors import RequestError

SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Where torchvision looks for weights before it downloads them: random ones lie there."""
    from torchvision.models import squeezenet1_1

    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(squeezenet1_1().state_dict(), folder / SQUEEZENET)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return folder


def kept(module, state):
    return {name for name, value in module.state_dict().items() if torch.equal(value, state[name])}


def test_weights_option__keeps_all_layers_but_the_classifier(hub, capsys):
    state = torch.load(hub / SQUEEZENET)
    model = load_model(
        "squeezenet1_1:weights=DEFAULT", Input(image_size=64), classes=5, channels=3, new_classifier=True
    )
    assert state.keys() - kept(model.module, state) == {"classifier.1.weight", "classifier.1.bias"}
    assert (model.classes, model.has_weights, model.new_layers) == (5, True, ("classifier.1",))
    assert model.architecture == "squeezenet1_1:num_classes=5"  # a run builds it without a download
    assert "its weights are of other classes; classifier.1 is new, with 5 classes" in capsys.readouterr().err


def test_weights_option__with_as_many_classes_is_taken_whole(hub, capsys):
    state = torch.load(hub / SQUEEZENET)
    model = load_model(
        "squeezenet1_1:weights=DEFAULT", Input(image_size=64), classes=1000, channels=3, new_classifier=True
    )
    assert kept(model.module, state) == state.keys()
    assert not model.new_layers
    assert "is new" not in capsys.readouterr().err


def test_weights_file__keeps_the_layers_and_the_seed_decides_the_new_ones(tmp_path):
    trained = cifar_resnet(8, width=4, num_classes=7)
    torch.save(trained.state_dict(), tmp_path / "seven.pt")
    text = f"cifar_resnet:depth=8,width=4@{tmp_path / 'seven.pt'}"
    torch.manual_seed(3)
    model = load_model(text, classes=5, channels=3, new_classifier=True)
    torch.manual_seed(3)
    fresh = cifar_resnet(8, width=4, num_classes=5)
    state = trained.state_dict()
    own = {name: value for name, value in model.module.state_dict().items() if not torch.equal(value, state[name])}
    new = fresh.state_dict()
    assert own and all(torch.equal(value, new[name]) for name, value in own.items())
    assert {value.shape[0] for value in own.values()} == {5}


def test_weights_file__of_other_classes_is_refused_where_a_model_has_to_answer(tmp_path):
    torch.save(cifar_resnet(8, width=4, num_classes=7).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(RequestError, match="has 7 classes, the teacher 5"):
        load_model(f"cifar_resnet:depth=8,width=4@{tmp_path / 'seven.pt'}", classes=5, channels=3)


def test_timm__pretrained_weights_keep_their_layers(monkeypatch, capsys):
    import timm

    name = "test_resnet"
    made = []

    def load(model, *arguments, **options):
        made.append(model)

    monkeypatch.setattr("timm.models._builder.load_pretrained", load)
    text = f"timm.create_model:model_name={name},pretrained=true"
    model = load_model(text, classes=5, channels=3, new_classifier=True)
    (trained,) = made
    classifier = timm.create_model(name).pretrained_cfg["classifier"]
    state = trained.state_dict()
    assert {key for key in state if not torch.equal(state[key], model.module.state_dict()[key])} == {
        f"{classifier}.weight",
        f"{classifier}.bias",
    }
    assert f"{classifier} is new, with 5 classes" in capsys.readouterr().err


def test_keep_layers__takes_no_part_of_a_layer_that_is_new():
    # two biases of one length under weights of two shapes
    ours, theirs = nn.Sequential(nn.Linear(3, 5)), nn.Sequential(nn.Linear(4, 5))
    before = ours[0].bias.clone()
    assert keep_layers(ours, theirs) == ["0"]
    assert torch.equal(ours[0].bias, before)


@pytest.mark.parametrize("shape", [(16, 5), (64, 10), (1280, 101)])
def test_untrained__tells_torchs_first_weights_from_others(shape):
    for seed in range(20):
        torch.manual_seed(seed)
        layer = nn.Linear(*shape)
        assert untrained(layer)
        nn.init.zeros_(layer.weight)
        assert untrained(layer)
        nn.init.normal_(layer.weight, std=shape[0] ** -0.5 / 3**0.5)
        assert not untrained(layer)
        nn.init.uniform_(layer.weight, -0.5 * shape[0] ** -0.5, 0.5 * shape[0] ** -0.5)
        assert not untrained(layer)


def test_untrained__a_few_weights_do_not_tell():
    assert not untrained(nn.Linear(9, 7)) and not untrained(nn.Linear(4, 2))


@pytest.mark.parametrize("shape", [(32, 2), (64, 10)])
def test_untrained__some_steps_of_training_are_enough(shape):
    torch.manual_seed(0)
    layer, x = nn.Linear(*shape), torch.randn(512, shape[0])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(x), x[:, : shape[1]].argmax(1)).backward()
        optimizer.step()
    assert not untrained(layer)
