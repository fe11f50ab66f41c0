"""A student that gets specialists, through the real commands: trained, resumed, measured, exported."""

import json
import re
import tomllib

import pytest
from safetensors.torch import load_file, save_file

from dfkd.formats.run_folder import Run
from dfkd.models import cifar_resnet
from dfkd.models.architectures.specialists import Specialists
from dfkd.models.load import load_model

QUICK = ("--batch-size", 16, "--checkpoint-every", 3, "--log-every", 3)
SPECIAL = ("--specialists", 2, "--steps", 6)


@pytest.fixture(scope="module")
def generalist(lab, selection, tmp_path_factory):
    out = tmp_path_factory.mktemp("generalist") / "run"
    assert lab.distill(selection, out, *QUICK, "--steps", 8, "--init", "none", "--loss", "kd") == 0
    return out


@pytest.fixture(scope="module")
def run(lab, selection, generalist, tmp_path_factory):
    out = tmp_path_factory.mktemp("specialists") / "run"
    assert lab.distill(selection, out, "--student", generalist, *QUICK, *SPECIAL) == 0
    return out


def test_specialists__are_trained_for_groups_of_classes_beside_the_generalist(generalist, run):
    network = load_model(str(run)).module
    assert isinstance(network, Specialists)
    assert all(2 <= count < 10 for count in network.special.classes.sum(dim=1).tolist())
    begun = load_file(generalist / "student.safetensors")
    assert all(value.equal(begun[name]) for name, value in network.generalist.state_dict().items())
    for expert in network.experts.networks:
        state = expert.state_dict()
        assert not state["conv1.weight"].equal(begun["conv1.weight"])
        assert all(state[name].equal(begun[name]) for name in begun if name.endswith(("running_mean", "running_var")))
    told = tomllib.loads((run / "config.toml").read_text())
    assert told["distill"]["loss"] == ["specialists"] and told["distill"]["optimizer"] == "adamw"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["specialists"] == pytest.approx(rows[-1]["loss"])


def test_specialists__go_on_to_the_same_run_after_a_kill(lab, selection, generalist, run, tmp_path, monkeypatch):
    save = Run.save
    command = (selection, tmp_path / "run", "--student", generalist, *QUICK, *SPECIAL)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", lambda self, *given: (save(self, *given), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            lab.distill(*command)
    assert lab.distill(*command) == 0
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == (run / "student.safetensors").read_bytes()


def test_specialists__are_a_model_for_export(lab, selection, run, tmp_path, capsys):
    assert lab.dfkd("export", "--model", run, "--out", tmp_path / "s.pt2", "--samples", selection) == 0
    assert re.search(r"float32 .* 100\.0%", capsys.readouterr().err)


def test_specialists__are_explained_by_maps_of_the_generalist(lab, run, tmp_path, capsys):
    assert lab.dfkd("explain", "--model", run, "--data", lab.few_heldout, "--out", tmp_path / "page.html") == 0
    assert "no maps of" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--loss", "kd"), "--loss kd cannot train"),
        (("--specialists", 6), "--specialists 6: each needs two classes, and there are 10"),
        (("--init", "teacher"), "--specialists 3 keeps the student's own weights"),
        (("--student", "cifar_resnet:depth=8,width=4"), "--specialists 3 needs a student with weights"),
        (("--prune", 0.5), "prune it first, with a command of its own"),
    ],
)
def test_specialists__refuse_what_they_cannot_do(lab, selection, generalist, tmp_path, capsys, options, said):
    command = {"--student": generalist, "--specialists": 3, "--steps": 2} | dict([options])
    flags = [word for pair in command.items() for word in pair]
    assert lab.distill(selection, tmp_path / "run", *flags) == 2
    assert said in capsys.readouterr().err


def test_specialists__of_a_student_that_has_some_are_refused(lab, selection, run, tmp_path, capsys):
    assert lab.distill(selection, tmp_path / "again", "--student", run, *SPECIAL) == 2
    assert "has specialists; leave one out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--source", "dfad"), "run has specialists, which train on stored images, and --source dfad makes more"),
        (("--prune", 0.5), "run has specialists; prune first"),
    ],
)
def test_specialists__that_are_trained_on_refuse_what_they_cannot_do(
    lab, selection, run, tmp_path, capsys, options, said
):
    assert lab.distill(selection, tmp_path / "again", "--student", run, "--steps", 2, *options) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--quantize", "int8")])
def test_specialists__of_a_new_classifier_are_refused(lab, selection, tmp_path, capsys, more):
    """The generalist is not trained, so that its classifier would stay random."""
    other = cifar_resnet(depth=8, width=4, num_classes=7, in_channels=1)
    save_file(other.state_dict(), tmp_path / "seven.safetensors")
    student = f"cifar_resnet:depth=8,width=4@{tmp_path / 'seven.safetensors'}"
    assert lab.distill(selection, tmp_path / "run", "--student", student, *SPECIAL, *more) == 2
    assert "is new; distil it first, and name its RUN" in capsys.readouterr().err
