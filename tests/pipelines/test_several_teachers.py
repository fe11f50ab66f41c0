"""`--teacher A B` through all commands: digits whose teachers know all ten, or half of them each."""

import json
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dfkd
from dfkd.app import demo
from dfkd.config.stages.shared import Input
from dfkd.formats.shards import Shards
from dfkd.models.load import load_model
from dfkd.models.several import given_teacher, load_classifier
from dfkd.select import ray_scorer, request

SHORT = ("--steps", 6, "--batch-size", 32, "--checkpoint-every", 3, "--log-every", 3)


@pytest.fixture(scope="module")
def teachers(lab):
    """The lab's teacher, and the same with other last bits: no other training is needed."""
    from safetensors.torch import load_file

    state = load_file(lab.folder / "teacher.safetensors")
    torch.manual_seed(0)
    noisy = {k: v * (1 + 0.05 * torch.randn_like(v)) if v.ndim > 1 else v for k, v in state.items()}
    save_file(noisy, lab.folder / "second.safetensors")
    return lab.teacher, f"{demo.TEACHER}@{lab.folder / 'second.safetensors'}"


@pytest.fixture(scope="module")
def both(lab, teachers, tmp_path_factory):
    """A selection by both."""
    out = tmp_path_factory.mktemp("both") / "selection"
    command = ("select", "--pool", lab.few, "--out", out, "--count", 100, "--filter", "none")
    assert lab.dfkd(*command, "--teacher", *teachers, *lab.flags, "--mixing", "entropy") == 0
    return out


def test_selection__has_the_answers_of_the_ensemble(lab, teachers, both):
    shards = Shards(both)
    manifest = shards.manifest
    assert manifest.teacher.count("cifar_resnet") == 2 and " + " in manifest.teacher
    assert "mixing=entropy" in manifest.content.teacher.architecture
    # the method that reads BatchNorm layers is the default here, too
    assert manifest.content.options.method.startswith("statistics")
    model = load_classifier(given_teacher(teachers, "entropy"), Input(demo.NORMALIZE, demo.SIDE))
    with torch.no_grad():
        answers = model.module(model.preprocess(torch.from_numpy(shards.pixels(np.arange(20)))))
    assert np.allclose(shards.column("logits")[:20], answers.numpy(), atol=0.05)


def test_selection__by_workers_of_ray_which_open_the_teachers_themselves(lab, teachers, both, tmp_path, monkeypatch):
    """Ray is played: one worker, in this process."""
    scored = []

    def scorer(self, todo, advance):
        worker = ray_scorer._Worker(self.request.config, self.adapted, self.scoring, os.getcwd())
        for part in todo:
            scored.append(part)
            yield worker.score(part)[1]

    monkeypatch.setattr(request, "check_installed", lambda: None)
    monkeypatch.setattr(ray_scorer.RayScorer, "__call__", scorer)
    command = ("select", "--pool", lab.few, "--count", 100, "--filter", "none", "--teacher", *teachers, *lab.flags)
    more = ("--mixing", "entropy", "--batch-size", 128, "--engine", "ray", "--out", tmp_path / "out")
    assert lab.dfkd(*command, *more) == 0 and scored
    logits, expected = (Shards(folder).column("logits") for folder in (tmp_path / "out", both))
    assert np.allclose(logits, expected, atol=0.05)
    objects = dfkd.Teacher(
        [load_model(text).module for text in teachers], normalize=demo.NORMALIZE, image_size=demo.SIDE
    )
    with pytest.raises(dfkd.RequestError, match="takes a MODEL and DATA as texts"):
        objects.select(str(lab.few), engine="ray", verbose=False)


def test_distill__learns_from_both_with_the_default_losses(lab, teachers, both, tmp_path, capsys):
    run = tmp_path / "run"
    student = ("--student", "cifar_resnet:depth=8,width=4", "--samples", both, "--out", run, "--test", lab.heldout)
    command = ("distill", "--teacher", *teachers, "--mixing", "entropy", *student, "--precision", "fp32", *SHORT)
    assert lab.dfkd(*command) == 0
    said = capsys.readouterr().err
    assert "losses: kd ofd" in said and "another teacher" not in said and "begin as the teacher's" in said
    config = tomllib.loads((run / "config.toml").read_text())
    assert len(config["distill"]["teacher"]) == 2 and config["distill"]["mixing"] == "entropy"
    result = json.loads((run / "result.json").read_text())
    assert result["teacher_top1"] > 0.9 and result["top1"] is not None
    assert lab.dfkd(*command[:4], *command[6:]) == 2  # the mean of the logits is another teacher
    assert "ensemble" in capsys.readouterr().err


def test_distill__keeps_the_answers_of_both(lab, teachers, both, tmp_path):
    student = ("--student", "cifar_resnet:depth=8,width=4", "--samples", both, "--out", tmp_path / "run")
    command = ("distill", "--teacher", *teachers, "--mixing", "entropy", *student, "--precision", "fp32", *SHORT)
    assert lab.dfkd(*command, "--teacher-views", 2) == 0


def test_config__of_one_teacher_is_as_before(lab, selection, tmp_path):
    assert lab.distill(selection, tmp_path / "run", *SHORT, "--steps", 1) == 0
    table = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["distill"]
    assert isinstance(table["teacher"], str) and "mixing" not in table


def test_generate__inverts_both(lab, teachers, tmp_path):
    method = "deepinversion:steps=2"
    command = ("generate", "--method", method, "--out", tmp_path / "made", "--count", 16, "--batch-size", 16)
    assert lab.dfkd(*command, "--teacher", *teachers, *lab.flags) == 0
    assert len(Shards(tmp_path / "made")) == 16


def halves(lab):
    """Teachers of the digits 0 to 5 and 4 to 9: the last layer of the one that knows all, cut."""
    from safetensors.torch import load_file

    state, texts = load_file(lab.folder / "teacher.safetensors"), []
    last = next(name for name in reversed([*state]) if name.endswith("weight") and len(state[name]) == 10)
    for name, digits in (("low", range(6)), ("high", range(4, 10))):
        cut = {**state}
        for part in (last, last.replace("weight", "bias")):
            cut[part] = state[part][list(digits)].clone()
        save_file(cut, lab.folder / f"{name}.safetensors")
        names = ", ".join(f'"{digit}"' for digit in digits)
        weights = f"{demo.TEACHER}@{lab.folder / f'{name}.safetensors'}".replace("num_classes=10", "num_classes=6")
        texts.append(f'[[teacher]]\nmodel = "{weights}"\nnormalize = "{demo.NORMALIZE}"\nclasses = [{names}]\n')
    return texts


@pytest.mark.parametrize(
    ("mixing", "least"), [("mean-logits", 0.85), ("mean-probabilities", 0.85), ("confidence", 0.7), ("entropy", 0.7)]
)
def test_teachers__that_know_some_digits_each_know_all_together(lab, tmp_path, mixing, least):
    file, figures = tmp_path / "halves.toml", tmp_path / "figures.json"
    file.write_text(f'mixing = "{mixing}"\n' + "".join(halves(lab)))
    command = ("evaluate", "--model", file, "--image-size", demo.SIDE, "--data", lab.heldout, "--json", figures)
    assert lab.dfkd(*command) == 0
    measured = json.loads(figures.read_text())
    assert len(measured["class_names"]) == 10 and measured["top1"] > least


def test_export__writes_the_ensemble_as_one_program(lab, teachers, both, tmp_path, capsys):
    file = tmp_path / "both.toml"
    tables = [f'[[teacher]]\nmodel = "{text}"\nnormalize = "{demo.NORMALIZE}"\n' for text in teachers]
    file.write_text('mixing = "entropy"\n' + "".join(tables))
    command = ("export", "--model", file, "--image-size", demo.SIDE, "--out", tmp_path / "both.pt2")
    assert lab.dfkd(*command, "--samples", both) == 0
    assert "100.0%" in capsys.readouterr().err


def test_python__selects_and_distills_with_a_list(lab, teachers, tmp_path, rng):
    teacher = dfkd.Teacher([*teachers], normalize=demo.NORMALIZE, image_size=demo.SIDE, mixing="confidence")
    pool = rng.integers(0, 256, (40, demo.SIDE, demo.SIDE, 1), dtype=np.uint8)
    selection = teacher.select(pool, count=20, filter="none", precision="fp32", verbose=False)
    run = teacher.distill("cifar_resnet:depth=8,width=4", selection, steps=1, batch_size=8, verbose=False)
    assert "mixing=confidence" in selection.manifest["content"]["teacher"]["architecture"]
    config = tomllib.loads((Path(run.folder) / "config.toml").read_text())["distill"]
    assert len(config["teacher"]) == 2 and config["mixing"] == "confidence"


def test_student__that_is_several_is_refused(lab, both, tmp_path, capsys):
    command = ("distill", "--teacher", lab.teacher, "--student", "s.toml", "--samples", both, "--out", tmp_path / "run")
    assert lab.dfkd(*command) == 2
    assert "names several networks, and one is trained" in capsys.readouterr().err


def test_learned__weighs_the_teachers_on_a_selection_and_is_refused_without_one(lab, teachers, both, tmp_path, capsys):
    student = ("--student", "cifar_resnet:depth=8,width=4", "--precision", "fp32", "--steps", 1, "--loss", "kd")
    command = ("--teacher", *teachers, "--mixing", "learned")
    assert lab.dfkd("distill", *command, *student, "--samples", both, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "cannot tell which one is right" in said and "teacher 2 counts" in said
    assert 'mixing = "learned"' in (tmp_path / "run" / "config.toml").read_text()
    made = ("--method", "deepinversion:steps=1", "--out", tmp_path / "made", "--count", 8, "--batch-size", 8)
    assert lab.dfkd("generate", *command, *made, "--samples", both) == 0
    assert "teacher 2 counts" in capsys.readouterr().err
    assert lab.dfkd("select", *command, *lab.flags, "--pool", lab.pool, "--out", tmp_path / "selection") == 2
    assert "--mixing learned needs images to learn weights on" in capsys.readouterr().err
