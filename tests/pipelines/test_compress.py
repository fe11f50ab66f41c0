"""Students that are made smaller before they learn: a pipeline that prunes, distils and quantizes."""

import json

import pytest
import tomli_w
import torch

from dfkd.app.pipeline_file import read_pipeline
from dfkd.config import DistillConfig
from dfkd.distill.prepare import prepare
from dfkd.models import cifar_resnet
from dfkd.models.load import load_model
from dfkd.system.errors import RequestError


@pytest.fixture(scope="module")
def made(lab, selection, tmp_path_factory):
    """A pruned teacher that learned on a selection, and its student in int8."""
    folder = tmp_path_factory.mktemp("compressed")
    table = {
        "out": str(folder / "out"),
        "defaults": {
            "teacher": lab.teacher,
            "samples": [str(selection)],
            "batch-size": 16,
            "precision": "fp32",
            "loss": ["kd"],
            "log-every": 2,
            "test": lab.heldout,
        },
        "seeds": [0, 1],
        "distill": {
            "pruned": {"student": lab.teacher, "prune": 0.25, "steps": 30, "lr": 0.02},
            "int8": {"student": "run:pruned", "quantize": "int8", "steps": 5},
        },
    }
    (folder / "file.toml").write_text(tomli_w.dumps(table))
    assert lab.dfkd("run", folder / "file.toml") == 0
    return folder


def result(made, row):
    return json.loads((made / f"out/runs/{row}-seed0/result.json").read_text())


def test_pipeline__prunes_distils_and_quantizes(lab, made):
    pruned, int8 = (result(made, row) for row in ("pruned", "int8"))
    whole = load_model(lab.teacher).parameter_count()
    assert pruned["student_parameters"] < 0.35 * whole
    assert pruned["begins"] == int8["begins"] == "given"
    assert int8["top1"] > pruned["top1"] - 0.1
    assert pruned["teacher_forwards"] == 30 * 16 + 64  # its layers are fitted to those before pruning, on 64 views
    assert pruned["top1"] > 0.3
    told = (made / "out/runs/int8-seed0/config.toml").read_text()
    assert "run:" not in told
    assert 'optimizer = "adamw"' in told  # a rate for random weights destroys a network without BatchNorm


def test_pipeline__compares_rows_that_go_on_from_runs_of_their_own_seeds(made):
    table = (made / "out/report.csv").read_text()
    assert table.count("\nint8,") == table.count("\npruned,") == 2


def test_model__that_is_named_by_many_widths_is_no_path(lab, made, selection, tmp_path):
    run, weights, data = made / "out/runs/pruned-seed0", tmp_path / "w.safetensors", ("--data", lab.few_heldout)
    assert lab.dfkd("export", "--model", run, "--out", weights) == 0
    model = f"{load_model(str(run)).architecture}@{weights}"
    assert len(model) > 255
    assert lab.dfkd("evaluate", "--model", model, *data) == 0
    assert lab.dfkd("explain", "--model", model, "--teacher", lab.teacher, *data, "--out", tmp_path / "page.html") == 0
    quick = ("--steps", 1, "--batch-size", 8, "--loss", "kd")
    assert lab.distill(selection, tmp_path / "run", *quick, "--student", model) == 0


def test_run__of_a_student_in_int8_is_exported_with_the_scales_it_learned(lab, made, selection, tmp_path, capsys):
    run = made / "out/runs/int8-seed0"
    assert (
        lab.dfkd("export", "--model", run, "--dtype", "int8", "--samples", selection, "--out", tmp_path / "s.pt2") == 0
    )
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    row = next(line for line in lines if line[:1] == ["int8"])
    assert float(row[3]) < 1e-3 and row[-1] == "100.0%"
    half = ("--dtype", "float16", "--samples", selection, "--out", tmp_path / "half.pt2")
    assert lab.dfkd("export", "--model", run, *half) == 0
    model = load_model(str(run))
    assert model.architecture.startswith("quantized:") and "pruned:" in model.architecture
    assert model.module(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


def test_judge__of_a_student_in_int8_leaves_its_ranges_as_they_are(lab):
    model = {"teacher": lab.teacher, "student": lab.teacher, "quantize": "int8", "normalize": "0.5/0.5"}
    config = DistillConfig(**model, source="dfad:width=4", image_size=16, batch_size=4, precision="fp32", out="")
    trainer = prepare(config, config.teacher, config.student, None).trainer
    trainer.begin()
    before = {name: value.clone() for name, value in trainer.student.module.state_dict().items()}
    view = torch.randn(4, 1, 16, 16)
    trainer.judge(view)
    assert all(torch.equal(value, before[name]) for name, value in trainer.student.module.state_dict().items())
    trainer.reply(view)
    moved = [
        name for name, value in trainer.student.module.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert {name.rpartition(".")[2] for name in moved} == {"low", "high", "seen"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prune", 1.5), "--prune 1.5 is not above 0 and below 1"),
        (("--prune", 0.5), "--prune 0.5 needs a student with weights"),
        (("--quantize", "int8"), "--quantize int8 needs a student with weights"),
        (("--prune", 0.5, "--init", "teacher"), "leave out --init teacher"),
    ],
)
def test_distill__refuses_in_one_line(lab, selection, tmp_path, capsys, options, said):
    assert lab.distill(selection, tmp_path / "run", "--steps", 1, *options) == 2
    assert said in capsys.readouterr().err


def test_prune__of_a_student_in_int8_is_refused(lab, made, selection, tmp_path, capsys):
    run = made / "out/runs/int8-seed0"
    assert lab.distill(selection, tmp_path / "run", "--student", run, "--prune", 0.5, "--steps", 1) == 2
    assert "has int8 layers; prune first" in capsys.readouterr().err


def test_prune__without_its_library_names_the_extra(lab, selection, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    assert lab.distill(selection, tmp_path / "run", "--steps", 1, "--prune", 0.5) == 2
    assert "pip install '.[prune]'" in capsys.readouterr().err


def test_pipeline__names_the_rows_that_a_student_may_go_on_from(tmp_path):
    table = {"defaults": {"teacher": "lenet5@t.pt"}, "distill": {"one": {"student": "run:two", "source": "dfad"}}}
    (tmp_path / "file.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(RequestError, match="student names the run of 'two', no row of this file"):
        read_pipeline(tmp_path / "file.toml")


def test_prune__of_a_student_of_other_classes_fits_its_new_classifier(lab, selection, tmp_path, capsys):
    torch.save(cifar_resnet(8, width=8, num_classes=4, in_channels=1).state_dict(), tmp_path / "four.pt")
    student = ("--student", f"cifar_resnet:depth=8,width=8@{tmp_path / 'four.pt'}", "--prune", 0.5)
    assert lab.distill(selection, tmp_path / "run", "--steps", 1, "--batch-size", 8, *student) == 0
    said = capsys.readouterr().err
    assert "the classifier explains" in said
    assert "layers are fitted" not in said
