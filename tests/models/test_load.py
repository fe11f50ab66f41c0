import json
import sys
from pathlib import Path

import pytest
import tomli_w
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dfkd import models
from dfkd.config.stages.shared import Input
from dfkd.data.images.normalize import Normalization, parse_normalize
from dfkd.formats.run_records import RUN_FORMAT
from dfkd.models.load import load_model
from dfkd.models.reduce import Half
from dfkd.system.checksums import sealed
from dfkd.system.errors import RequestError

OWN = """
from typing import NamedTuple
import torch
from torch import nn

def plain(width=4):
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 6)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), *head)

def configured(in_chans=3, num_classes=1000, **kwargs):
    net = nn.Sequential(nn.Conv2d(in_chans, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    net.pretrained_cfg = {"input_size": (3, 48, 48)}
    return net

class Pair(plain().__class__):
    def forward(self, x):
        return x, x

def pair():
    return Pair(*plain())

def maps():
    return nn.Conv2d(3, 4, 3)

def half():
    return plain().half()

def broken():
    raise RuntimeError("no such depth")

def number():
    return 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module `own_nets` outside of the package, as a user has one."""
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_nets", None)


def save(module: nn.Module, path: Path) -> str:
    torch.save(module.state_dict(), path)
    return str(path)


def write_run(folder: Path, module: nn.Module, architecture: str) -> str:
    folder.mkdir()
    shape = {"normalize": "cifar10", "image_size": 24, "classes": 10, "channels": 3}
    tables = {"format": RUN_FORMAT, "model": {"architecture": architecture, **shape}, "content": {}}
    (folder / "config.toml").write_text(tomli_w.dumps(sealed(tables)))
    save_file(module.state_dict(), folder / "student.safetensors")
    return str(folder)


def test_a_name_becomes_a_network_ready_to_evaluate():
    model = load_model("cifar_resnet:depth=8,width=4")
    assert isinstance(model.module, models.cifar_resnet(8).__class__)
    assert not model.module.training
    assert (model.classes, model.channels, model.image_size, model.normalize) == (10, 3, 32, "imagenet")
    assert model.preprocess == Normalization(*parse_normalize("imagenet", 3))
    assert model.spec == "cifar_resnet:depth=8,width=4"
    assert model.architecture == "cifar_resnet:depth=8,in_channels=3,num_classes=10,width=4"
    assert model.parameter_count() == sum(p.numel() for p in models.cifar_resnet(8, width=4).parameters())


def test_the_architecture_builds_the_same_network_again():
    model = load_model("CIFAR_ResNet:width=4,depth=8", classes=7, channels=1)
    again = load_model(model.architecture)
    assert again.architecture == model.architecture
    again.module.load_state_dict(model.module.state_dict())
    assert again.fingerprint() == model.fingerprint()


def test_dfkd_models_are_found_without_importing_torchvision(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # its import now fails
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert load_model("lenet5").classes == 10


def test_torchvision_models_are_the_second_place_to_look():
    model = load_model("mobilenet_v3_small", Input(image_size=64), classes=7)
    assert (model.classes, model.channels, model.image_size) == (7, 3, 64)
    assert model.architecture == "mobilenet_v3_small:num_classes=7"
    assert load_model("squeezenet1_1:num_classes=4").image_size == 224


def test_a_size_among_the_options_is_the_image_size():
    options = "patch_size=8,num_layers=1,num_heads=1,hidden_dim=8,mlp_dim=8,num_classes=3"
    name = f"torchvision.models.vision_transformer.VisionTransformer:image_size=16,{options}"
    assert load_model(name).image_size == 16
    with pytest.raises(
        RequestError,
        match=r"cannot take an input of \[batch, 3, 32, 32\]: AssertionError: Wrong image height.*--image-size",
    ):
        load_model(name, Input(image_size=32))


def test_weights_are_loaded_and_shortened_to_their_name(tmp_path: Path):
    trained = models.cifar_resnet(8, width=4)
    model = load_model(f"cifar_resnet:depth=8,width=4@{save(trained, tmp_path / 'w.pt')}", Input("cifar10"))
    assert model.spec == "cifar_resnet:depth=8,width=4@w.pt"
    assert model.normalize == "cifar10"
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.module(images), trained.eval()(images))


def test_counts_are_inferred_from_the_weights(tmp_path: Path):
    weights = save(models.cifar_resnet(8, width=4, num_classes=100, in_channels=1), tmp_path / "w.pt")
    model = load_model(f"cifar_resnet:depth=8,width=4@{weights}")
    assert (model.classes, model.channels) == (100, 1)
    assert model.architecture == "cifar_resnet:depth=8,in_channels=1,num_classes=100,width=4"
    with pytest.raises(RequestError, match="mis-shaped"):
        load_model(f"cifar_resnet:depth=8,width=4,num_classes=10@{weights}")
    with pytest.raises(RequestError, match=r"has 100 classes, the teacher 10"):
        load_model(f"cifar_resnet:depth=8,width=4@{weights}", classes=10, channels=1)


def test_counts_are_inferred_where_a_convolution_classifies(tmp_path: Path):
    from torchvision.models import squeezenet1_1

    weights = save(squeezenet1_1(num_classes=4), tmp_path / "w.pt")
    assert load_model(f"squeezenet1_1@{weights}", Input(image_size=64)).classes == 4


def test_a_student_takes_over_the_teachers_counts():
    model = load_model("lenet5_half", classes=7, channels=3)
    assert (model.classes, model.channels) == (7, 3)
    with pytest.raises(RequestError, match=r"'lenet5:num_classes=5' has 5 classes, the teacher 10"):
        load_model("lenet5:num_classes=5", classes=10)
    with pytest.raises(RequestError, match=r"takes 1 input channels, the teacher 3$"):
        load_model("lenet5:in_channels=1", channels=3)
    with pytest.raises(
        RequestError, match=r"takes 3 input channels, the teacher 1; its constructor has no in_channels"
    ):
        load_model("mobilenet_v3_small", channels=1)
    assert load_model("lenet5:num_classes=5", classes=5).classes == 5


def test_a_run_is_a_model(tmp_path: Path):
    student = models.cifar_resnet(8, width=4)
    run = write_run(tmp_path / "run1", student, "cifar_resnet:depth=8,width=4")
    model = load_model(run)
    assert (model.spec, model.normalize, model.image_size) == ("run1", "cifar10", 24)
    assert model.fingerprint()["weights"] == load_model(run, Input("none")).fingerprint()["weights"]
    assert torch.equal(model.module.conv1.weight, student.conv1.weight)
    given = load_model(run, Input("none", 16))
    assert (given.normalize, given.image_size) == ("none", 16)


def test_a_run_that_is_unfinished_or_none_is_refused(tmp_path: Path):
    run = Path(write_run(tmp_path / "run1", models.cifar_resnet(8), "cifar_resnet:depth=8"))
    (run / "student.safetensors").unlink()
    with pytest.raises(RequestError, match=r"run1' is not finished \(no student.safetensors\)"):
        load_model(str(run))
    (run / "config.toml").write_text("[other]\n")
    with pytest.raises(RequestError, match=r"config.toml cannot be read \(it has no format\)"):
        load_model(str(run))
    with pytest.raises(RequestError, match="is not a finished RUN"):
        load_model(str(tmp_path / "run2"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(module.eval(), (torch.zeros(2, 3, 12, 12),), dynamic_shapes=shapes), path)
    return path, module


def test_an_exported_program_is_a_model(exported: tuple[Path, nn.Module]):
    path, module = exported
    model = load_model(str(path))
    assert (model.spec, model.architecture) == ("net.pt2", "net.pt2")
    assert (model.classes, model.channels, model.image_size) == (5, 3, 12)
    assert model.parameter_count() == sum(p.numel() for p in module.parameters())
    images = torch.rand(3, 3, 12, 12)
    torch.testing.assert_close(model.module.train()(images), module(images))  # train() is allowed and changes nothing
    with pytest.raises(RequestError, match=r"cannot take an input of \[batch, 3, 16, 16\]"):
        load_model(str(path), Input(image_size=16))
    with pytest.raises(RequestError, match="has 5 classes, the teacher 10"):
        load_model(str(path), classes=10)


class Converts(nn.Module):
    """Converts number types, as attention and ensembles do: also where no gradient is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(self.conv(x))
        with torch.no_grad():
            level = maps.float().mean(dim=(2, 3))
        return self.linear(maps.mean(dim=(2, 3)).float() - level / 2).float()


def exported_again(module: nn.Module, path: Path) -> nn.Module:
    """The module as a program that is read from a file."""
    program = torch.export.export(module, (torch.zeros(2, 3, 12, 12),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, path)
    return load_model(str(path)).module


@torch.no_grad()
def test_an_exported_program_that_converts_number_types_is_the_network_in_bfloat16(tmp_path: Path):
    network, images = Converts().eval(), torch.rand(3, 3, 12, 12)
    again = exported_again(network, tmp_path / "net.pt2")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(again(images), network(images), rtol=0, atol=0)
    torch.testing.assert_close(again(images), network(images))


@torch.no_grad()
def test_an_exported_program_in_float16_stays_in_float16(exported: tuple[Path, nn.Module], tmp_path: Path):
    module, images = Half(exported[1]), torch.rand(3, 3, 12, 12)
    again, expected = exported_again(module.eval(), tmp_path / "net.pt2"), module(images)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(again(images), expected, rtol=0, atol=1e-3)
    shapes = (({0: torch.export.Dim.DYNAMIC},),)
    once_more = torch.export.export(again, (images,), dynamic_shapes=shapes)  # it can be exported again
    torch.testing.assert_close(once_more.module()(images), again(images))


def test_an_exported_program_of_one_batch_size_is_refused(tmp_path: Path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    torch.export.save(torch.export.export(module, (torch.zeros(8, 3, 2, 2),)), tmp_path / "net.pt2")
    with pytest.raises(RequestError, match="takes only batches of 8; export it with dynamic_shapes="):
        load_model(str(tmp_path / "net.pt2"))
    (tmp_path / "bad.pt2").write_bytes(b"nothing")
    with pytest.raises(RequestError, match=r"bad.pt2' cannot be read"):
        load_model(str(tmp_path / "bad.pt2"))
    with pytest.raises(RequestError, match=r"no file .*nett.pt2'; did you mean 'net.pt2'"):
        load_model(str(tmp_path / "nett.pt2"))


def test_a_network_of_ones_own_by_dotted_name(own: None, tmp_path: Path):
    from own_nets import plain  # type: ignore[import-not-found]

    trained = plain(8)
    model = load_model(f"own_nets.plain:width=8@{save(trained, tmp_path / 'w.pt')}", classes=6)
    assert (model.classes, model.channels, model.image_size) == (6, 3, None)
    assert model.architecture == "own_nets.plain:width=8"
    assert torch.equal(model.module[0].weight, trained[0].weight)
    assert load_model("own_nets.half").module[0].weight.dtype == torch.float32


def test_the_configuration_that_timm_puts_on_a_network_gives_its_size(own: None):
    model = load_model("own_nets.configured", classes=7, channels=1)
    assert (model.classes, model.channels, model.image_size) == (7, 1, 48)
    assert model.architecture == "own_nets.configured:in_chans=1,num_classes=7"


def test_timm_is_reached_by_its_dotted_name():
    model = load_model("timm.create_model:model_name=test_resnet", classes=7, channels=1)
    assert (model.classes, model.channels) == (7, 1)
    assert load_model(model.architecture).classes == 7
    with pytest.raises(
        RequestError, match=r"cannot be built: RuntimeError: Unknown model \(nope\) \(_factory.py, line "
    ):
        load_model("timm.create_model:model_name=nope")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cifar_resnett:depth=8", "did you mean 'cifar_resnet'"),
        ("mobilenet_v3_smal", "did you mean 'mobilenet_v3_small'"),
        ("cifar_resnet", "needs depth"),
        ("cifar_resnet:dept=8", "has no parameter 'dept'; did you mean 'depth'"),
        ("cifar_resnet:depth=9", r"depth=9 is not 6n\+2"),
        ("cifar_resnet:20", "20 is for no parameter: write key=value"),
        ("cifar_resnet:depth=8@", "names no weights after the @"),
        ("cifar_resnet:depth=8,in_channels=2", "the model has 2 channels"),
        ("student.onnx", "ONNX is written and not read; name the RUN, or export it as .pt2 too"),
        ("teacher.pth", r"names weights without their architecture: NAME\[:key=value,...\]@teacher.pth"),
        ("lenet5:num_classes=1", "two classes or more"),
        ("own_nets.pair", r"tuple, not one tensor of logits \[batch, classes\]; name a network that"),
        ("own_nets.maps", r"returns \[2, 4, 30, 30\] for two images"),
        ("own_nets.broken", r"cannot be built: RuntimeError: no such depth \(own_nets.py, line 29\)"),
        ("own_nets.number", "built a int, not a torch.nn.Module"),
        ("torch.zeros", "model 'torch.zeros' has parameters that cannot be known"),
    ],
)
def test_a_wrong_model_is_refused_in_one_line(own: None, text: str, message: str):
    with pytest.raises(RequestError, match=message) as caught:
        load_model(text)
    assert "\n" not in str(caught.value)


def test_an_image_size_must_be_one():
    with pytest.raises(RequestError, match="--image-size 0"):
        load_model("lenet5", Input(image_size=0))
    with pytest.raises(RequestError, match=r"'lenet5' cannot take an input of \[batch, 1, 16, 16\]"):
        load_model("lenet5", Input(image_size=16))


def test_the_fingerprint_changes_with_a_weight_a_statistic_and_the_architecture():
    model = load_model("cifar_resnet:depth=8,width=4")
    before = json.dumps(model.fingerprint())
    assert json.dumps(model.fingerprint()) == before
    model.module.bn1.running_mean[0] += 1
    statistic = json.dumps(model.fingerprint())
    with torch.no_grad():
        model.module.linear.bias[0] += 1
    assert len({before, statistic, json.dumps(model.fingerprint())}) == 3
    assert model.fingerprint()["architecture"] == model.architecture


def test_loading_draws_nothing_beyond_the_initialization():
    torch.manual_seed(0)
    models.cifar_resnet(8, width=4)
    after = torch.rand(1)
    torch.manual_seed(0)
    load_model("cifar_resnet:depth=8,width=4")
    assert torch.equal(torch.rand(1), after)
