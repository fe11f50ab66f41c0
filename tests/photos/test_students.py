"""`dfkd distill` with a student that has weights already."""

import json
import tomllib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from dfkd.config import DistillConfig
from dfkd.config.stages.shared import Input
from dfkd.distill import defaults
from dfkd.distill.defaults import (
    begins_trained,
    default_init,
    default_losses,
    default_reestimate,
    layer_to_fit,
    settled,
)
from dfkd.distill.init.classifier import classifier_of
from dfkd.models import cifar_resnet
from dfkd.models.load import load_model
from dfkd.models.own import OwnNetwork
from dfkd.system.errors import RequestError


@pytest.fixture(scope="module")
def public(studio):
    """A stand-in for public weights: of 7 classes, where the teacher has 5."""
    torch.manual_seed(1)
    torch.save(cifar_resnet(8, width=2, num_classes=7).state_dict(), studio.folder / "public.pt")
    return f"cifar_resnet:depth=8,width=2@{studio.folder / 'public.pt'}"


def test_distill__fine_tunes_a_student_with_public_weights(studio, selection, public, tmp_path, capsys, monkeypatch):
    run, found = tmp_path / "run", []
    with monkeypatch.context() as patch:
        patch.setattr(defaults, "classifier_of", lambda *given: found.append(given) or classifier_of(*given))
        assert studio.distill(selection, run, "--student", public, "--lr", 0) == 0
    assert len(found) == 1, "the search takes seconds for a large network"
    said = capsys.readouterr().err
    assert "its weights are of other classes; linear is new, with 5 classes" in said
    assert "of the variance of the teacher's logits on 160 views" in said
    assert "optimizer: adamw, the default for a student that is fine-tuned" in said
    request = tomllib.loads((run / "config.toml").read_text())
    assert request["content"]["options"]["optimizer"] == request["distill"]["optimizer"] == "adamw"
    assert request["content"]["options"]["batchnorm"] == "kept"
    options = request["content"]["options"]
    assert (options["init"], options["crop_area"], options["dropout"]) == ("classifier", 0.1, "off")
    assert json.loads((run / "result.json").read_text())["teacher_forwards"] == 8 * 20 + 2 * 4
    state, before = load_file(run / "student.safetensors"), torch.load(studio.folder / "public.pt")
    assert torch.equal(state["conv1.weight"], before["conv1.weight"])
    assert torch.equal(state["bn1.running_var"], before["bn1.running_var"]) and not state["bn1.num_batches_tracked"]
    assert studio.dfkd("evaluate", "--model", run, "--data", studio.photos, "--image-size", 72) == 0


def test_init_classifier__is_nearer_to_the_teacher_than_a_random_classifier(studio, selection, public, tmp_path):
    loss = {}
    for init in ("none", "classifier"):
        given = ("--student", public, "--init", init, "--lr", 0, "--log-every", 1)
        assert studio.distill(selection, tmp_path / init, *given) == 0
        loss[init] = json.loads((tmp_path / init / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert loss["classifier"] < loss["none"] / 2


def test_compare__seeds_of_a_student_with_a_new_classifier_are_one_row(studio, selection, public, tmp_path):
    for seed in (0, 1):
        given = ("--student", public, "--seed", seed, "--name", "public")
        assert studio.distill(selection, tmp_path / f"{seed}", *given) == 0
    runs = (tmp_path / "0", tmp_path / "1")
    assert studio.dfkd("compare", *runs, "--out", tmp_path / "report.html") == 0
    assert len({(run / "student.safetensors").read_bytes() for run in runs}) == 2


def test_init_classifier__needs_images_and_a_linear_layer(studio, selection, tmp_path, capsys):
    given = ("--init", "classifier", "--loss", "kd")
    assert studio.distill(selection, tmp_path / "run", "--student", "squeezenet1_1", *given) == 2
    assert "needs a student whose logits a linear layer computes; squeezenet1_1 has none" in capsys.readouterr().err
    without = ("--teacher", studio.teacher, *studio.flags, "--student", "cifar_resnet:depth=8,width=2", "--steps", 2)
    made = ("--source", "dafl:latent=4,width=2", "--batch-size", 4)
    assert studio.dfkd("distill", *without, *made, *given, "--out", tmp_path / "run") == 2
    assert "--init classifier fits the student's last layer on --samples; name a selection" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_default_init__a_new_classifier_is_fitted_where_there_are_images(studio, public, tmp_path):
    teacher = load_model(studio.teacher, Input(image_size=72))
    torch.save(load_model("squeezenet1_1", classes=7).module.state_dict(), tmp_path / "squeeze.pt")
    of_convolution = f"squeezenet1_1@{tmp_path / 'squeeze.pt'}"
    for text, images, init in ((public, True, "classifier"), (public, False, "none"), (of_convolution, True, "none")):
        student = load_model(text, Input(image_size=72), classes=5, channels=3, new_classifier=True)
        assert default_init(teacher, student, text, layer_to_fit("auto", student, text, images)) == init


def test_default_init__a_new_layer_of_a_trained_module_is_fitted(studio):
    teacher = load_model(studio.teacher, Input(image_size=72))

    def chosen(module, images=True):
        given = OwnNetwork(module)
        student = load_model(given, Input(image_size=72), classes=5)
        return default_init(teacher, student, given, layer_to_fit("auto", student, given, images))

    module = cifar_resnet(8, width=4, num_classes=5)
    module.linear = torch.nn.Linear(16, 5)
    assert chosen(module) == "none"
    torch.nn.init.uniform_(module.bn1.weight)
    assert (chosen(module), chosen(module, images=False)) == ("classifier", "none")
    torch.nn.init.normal_(module.linear.weight, std=0.1)
    assert chosen(module) == "none"


def test_distill__an_optimizer_that_is_given_holds(studio, selection, public, tmp_path):
    run = tmp_path / "run"
    assert studio.distill(selection, run, "--student", public, "--optimizer", "sgd", "--log-every", 1) == 0
    options = tomllib.loads((run / "config.toml").read_text())["content"]["options"]
    assert (options["optimizer"], options["lr"], "batchnorm" in options) == ("sgd", 0.02, False)


def test_default_batchnorm__is_kept_with_adamw_alone_and_needs_statistics(studio, public, tmp_path):
    def chosen(student, given=public, **options):
        model = load_model(student, Input(image_size=72), classes=5, channels=3, new_classifier=student == public)
        config = DistillConfig(teacher="", student="", samples=(), out="", **options)
        found, fine_tuned, _ = settled(config, teacher, model, given, [])
        return found.optimizer, found.batchnorm, found.reestimate, fine_tuned

    teacher = load_model(studio.teacher, Input(image_size=72))
    assert chosen(public) == ("adamw", "kept", 0, True)
    assert chosen(public, batchnorm="batch") == ("adamw", "batch", 0, True)
    assert chosen(public, reestimate=5) == ("adamw", "batch", 5, True)
    assert chosen(public, optimizer="sgd") == ("sgd", "batch", 0, True)
    assert chosen("mobilenet_v3_small", "mobilenet_v3_small") == ("sgd", "batch", 20, False)
    with pytest.raises(RequestError, match=r"whose .* and mobilenet_v3_small has random weights"):
        chosen("mobilenet_v3_small", "mobilenet_v3_small", batchnorm="kept")
    with pytest.raises(RequestError, match=r"whose .* and mobilenet_v3_small has random weights"):
        chosen("mobilenet_v3_small", "mobilenet_v3_small", batchnorm="kept", init="classifier")
    assert chosen(studio.teacher, studio.teacher, batchnorm="kept", init="teacher") == ("adamw", "kept", 0, True)
    torch.save(load_model("squeezenet1_1", classes=5).module.state_dict(), tmp_path / "squeeze.pt")
    without = f"squeezenet1_1@{tmp_path / 'squeeze.pt'}"
    assert chosen(without, without) == ("adamw", "batch", 0, True)


def test_begins_trained__above_64_pixels_only(studio, public):
    for size in (64, 65):
        student = load_model(public, Input(image_size=size), classes=5, channels=3, new_classifier=True)
        assert begins_trained(student, public, "classifier") == begins_trained(student, public, "none") == (size == 65)
        assert not begins_trained(student, public, "teacher")
    teacher = load_model(studio.teacher, Input(image_size=32), classes=5, channels=3)
    assert not begins_trained(teacher, studio.teacher, "none")
    large = load_model(studio.teacher, Input(image_size=65), classes=5, channels=3)
    assert begins_trained(large, studio.teacher, "none")


def test_begins_trained__a_module_shows_it_by_its_normalization_layers():
    module = cifar_resnet(8, width=4)
    given = OwnNetwork(module)
    assert not begins_trained(load_model(given, Input(image_size=96)), given, "none")
    torch.nn.init.uniform_(module.bn1.weight)
    assert begins_trained(load_model(given, Input(image_size=96)), given, "none")


@pytest.mark.parametrize(("trained", "losses", "init"), [(False, ("kd", "ofd"), "teacher"), (True, ("kd",), "none")])
def test_defaults__code_that_may_load_weights__shows_whether_it_did(
    studio, tmp_path, monkeypatch, trained, losses, init
):
    name = f"narrow_nets_{init}"
    (tmp_path / f"{name}.py").write_text(
        "from dfkd.models import cifar_resnet\n"
        "def net(num_classes=5, in_channels=3):\n"
        "    net = cifar_resnet(8, width=2, num_classes=num_classes, in_channels=in_channels)\n"
        f"    net.bn1.weight.data[0] = {2 if trained else 1}\n"
        "    return net\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    student, teacher = (load_model(text, Input(image_size=72), classes=5) for text in (f"{name}.net", studio.teacher))
    config = DistillConfig(teacher="", student="", samples=(), out="")
    assert default_losses(config, teacher, student, f"{name}.net") == losses
    assert default_losses(replace(config, batchnorm="kept"), teacher, student, f"{name}.net") == ("kd",)
    for given, chosen in ((f"{name}.net", init), (OwnNetwork(student.module), "none")):
        assert default_init(teacher, student, given, layer_to_fit("auto", student, given, True)) == chosen


@pytest.mark.parametrize(
    ("name", "batches"),
    [("mobilenet_v3_small", 20), ("cifar_resnet:depth=8", 0), ("squeezenet1_1", 0), ("lenet5", 0)],
)
def test_default_reestimate__where_running_statistics_are_a_mean_over_many_steps(name, batches):
    assert default_reestimate(load_model(name, classes=5)) == batches


def test_distill__statistics_of_little_momentum_are_those_of_the_weights_that_are_written(
    studio, selection, tmp_path, monkeypatch
):
    (tmp_path / "slow_nets.py").write_text(
        "from dfkd.models import cifar_resnet\n"
        "def slow(num_classes=5, in_channels=3):\n"
        "    net = cifar_resnet(8, width=2, num_classes=num_classes, in_channels=in_channels)\n"
        "    for layer in net.modules():\n"
        "        if hasattr(layer, 'momentum'):\n"
        "            layer.momentum = 0.01\n"
        "    return net\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for run, more in {"run": (), "off": ("--reestimate", 0)}.items():
        assert studio.distill(selection, tmp_path / run, "--student", "slow_nets.slow", "--init", "none", *more) == 0
    states = {run: load_file(tmp_path / run / "student.safetensors") for run in ("run", "off")}
    assert {run: int(state["bn1.num_batches_tracked"]) for run, state in states.items()} == {"run": 20, "off": 2}
    assert torch.equal(states["run"]["conv1.weight"], states["off"]["conv1.weight"])
