"""`dfkd distill` with a student that has weights already."""

import tomllib

import pytest
import torch
from safetensors.torch import load_file

from dfkd.distill.defaults import begins_trained
from dfkd.models import cifar_resnet
from dfkd.models.load import load_model
from dfkd.models.own import OwnNetwork


@pytest.fixture(scope="module")
def public(studio):
    """A stand-in for public weights: of 7 classes, where the teacher has 5."""
    torch.manual_seed(1)
    torch.save(cifar_resnet(8, width=2, num_classes=7).state_dict(), studio.folder / "public.pt")
    return f"cifar_resnet:depth=8,width=2@{studio.folder / 'public.pt'}"


def test_distill__fine_tunes_a_student_with_public_weights(studio, selection, public, tmp_path, capsys):
    run = tmp_path / "run"
    assert studio.distill(selection, run, "--student", public, "--lr", 0) == 0
    said = capsys.readouterr().err
    assert "its weights are of other classes; linear is new, with 5 classes" in said
    assert "optimizer: adamw, the default for a student that begins trained" in said
    request = tomllib.loads((run / "config.toml").read_text())
    assert request["content"]["options"]["optimizer"] == request["distill"]["optimizer"] == "adamw"
    state, before = load_file(run / "student.safetensors"), torch.load(studio.folder / "public.pt")
    assert torch.equal(state["conv1.weight"], before["conv1.weight"])
    assert studio.dfkd("evaluate", "--model", run, "--data", studio.photos, "--image-size", 72) == 0


def test_distill__an_optimizer_that_is_given_holds(studio, selection, public, tmp_path):
    run = tmp_path / "run"
    assert studio.distill(selection, run, "--student", public, "--optimizer", "sgd", "--log-every", 1) == 0
    options = tomllib.loads((run / "config.toml").read_text())["content"]["options"]
    assert (options["optimizer"], options["lr"]) == ("sgd", 0.02)


def test_begins_trained__up_to_64_pixels_only_with_a_new_classifier(studio, public):
    student = load_model(public, classes=5, channels=3, image_size=32, new_classifier=True)
    assert begins_trained(student, public, "none")
    assert not begins_trained(student, public, "teacher")
    teacher = load_model(studio.teacher, classes=5, channels=3, image_size=32)
    assert not begins_trained(teacher, studio.teacher, "none")
    large = load_model(studio.teacher, classes=5, channels=3, image_size=65)
    assert begins_trained(large, studio.teacher, "none")


def test_begins_trained__a_module_shows_it_by_its_normalization_layers():
    module = cifar_resnet(8, width=4)
    given = OwnNetwork(module)
    assert not begins_trained(load_model(given, image_size=96), given, "none")
    torch.nn.init.uniform_(module.bn1.weight)
    assert begins_trained(load_model(given, image_size=96), given, "none")
