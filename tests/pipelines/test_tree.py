"""A soft decision tree through the real commands: distilled, resumed, measured, exported, shown."""

import json
import re

import pytest

from dfkd.models.load import load_model

TREE = ("--student", "soft_tree:depth=4", "--optimizer", "adamw", "--lr", 0.02, "--no-flip", "--crop-padding", 0)


@pytest.fixture(scope="module")
def run(lab, selection, tmp_path_factory):
    """A tree of the digits' teacher, trained for a moment."""
    out = tmp_path_factory.mktemp("trees") / "run"
    options = ("--steps", 60, "--batch-size", 64, "--checkpoint-every", 30, "--log-every", 10, "--test", lab.heldout)
    assert lab.distill(selection, out, *TREE, *options) == 0
    return out


def test_distill__trains_a_tree_by_its_own_loss(run):
    result = json.loads((run / "result.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["tree"] == pytest.approx(rows[-1]["loss"])
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1 and rows[-1]["agreement"] > 0.2
    assert result["student_parameters"] == 15 * 257 + 16 * 10
    assert "image_size=16" in load_model(str(run)).architecture


def test_tree__is_inspected_with_the_way_of_images(lab, run, tmp_path, capsys):
    page = tmp_path / "tree.html"
    assert lab.dfkd("inspect", run, "--out", page, "--pool", lab.heldout) == 0
    text = page.read_text()
    assert text.count("<image ") == 15
    ways = re.findall(r"leaf (\d+), reached with probability ([\d.]+)", text)
    assert len(ways) == 6 and len(re.findall(r"(?:left|right) with [\d.]+", text)) == 6 * 4
    assert lab.dfkd("inspect", run) == 2
    assert "--out FILE.html shows its filters" in capsys.readouterr().err


def test_loss__of_the_tree_is_refused_for_another_student(lab, selection, tmp_path, capsys):
    assert lab.distill(selection, tmp_path / "run", "--loss", "tree", "--steps", 2) == 2
    assert "--loss tree is for another student: cifar_resnet" in capsys.readouterr().err


def test_inspect__of_a_run_without_a_tree_says_what_to_do(lab, selection, tmp_path, capsys):
    assert lab.distill(selection, tmp_path / "run", "--steps", 1, "--loss", "kd", "--init", "none") == 0
    assert lab.dfkd("inspect", tmp_path / "run", "--out", tmp_path / "page.html") == 2
    assert "is a run: dfkd compare " in capsys.readouterr().err


def test_export__writes_the_tree_as_a_program(lab, run, selection, tmp_path, capsys):
    assert lab.dfkd("export", "--model", run, "--out", tmp_path / "tree.pt2", "--samples", selection) == 0
    assert re.search(r"float32 .* 100\.0%", capsys.readouterr().err)
