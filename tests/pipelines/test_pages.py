"""The examples of docs/own.md and docs/five_minutes.md, run as they stand there, and the pipeline of reference.md."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.app import cli
from dfkd.app.pipeline_file import read_pipeline

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page):
    """The Python blocks of a page, and the lines of its shell blocks."""
    text = (DOCS / page).read_text(encoding="utf-8")
    code, shell = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "sh"))
    return code, [line for block in shell for line in block.splitlines()]


CODE, COMMANDS = blocks("own.md")
SHORT = {
    "select": ("--normalize", "0.5/0.5", "--image-size", 16, "--filter", "none"),
    "generate": ("--normalize", "0.5/0.5", "--image-size", 16, "--batch-size", 8, "--steps", 2),
    "distill": ("--steps", 2, "--batch-size", 16, "--log-every", 1),
}


def lines(code):
    return len([line for line in code.splitlines() if line.strip()])


def test_own_page__examples_are_short():
    loss, function, method, generator = CODE
    assert lines(loss) <= 15 and lines(function) <= 15 and lines(method) <= 10 and lines(generator) <= 15
    assert [command.split()[1] for command in COMMANDS] == ["distill", "distill", "select", "generate", "distill"]


@pytest.fixture
def run(lab, selection, tmp_path, monkeypatch):
    """Run a command of the page on small data, in a folder with its `own.py`."""
    (tmp_path / "own.py").write_text("\n\n".join(CODE), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own", raising=False)
    there = {"TEACHER": lab.teacher, "STUDENT": "cifar_resnet:depth=8,width=4", "selection": selection}

    def run(command):
        words = [there.get(word, lab.pool if word == "photos/" else word) for word in shlex.split(command)[1:]]
        assert lab.dfkd(*words, *SHORT[words[0]], "--precision", "fp32") == 0
        return tmp_path / words[words.index("--out") + 1]

    yield run
    sys.modules.pop("own", None)


@pytest.mark.parametrize("command", COMMANDS)
def test_own_page__command_works(run, command):
    out = run(command)
    if command.startswith("dfkd distill"):
        row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
        named = re.search(r"--(?:loss (?:kd )?|source )(own\.\w+)", command)[1]
        assert row["step"] == 2 and (named in row or {"one_hot", "entropy"} <= row.keys())
    else:
        assert json.loads((out / "manifest.json").read_text())["count"] == 100


def test_own_page__method_declares_its_balance(run):
    command = next(command for command in COMMANDS if "own.near" in command)
    options = json.loads((run(command) / "manifest.json").read_text())["content"]["options"]
    assert options["balance"] == "class" and options["method"] == "own.near:center=0.7" and len(options["code"]) == 16


def test_reference__the_pipeline_is_read(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", (DOCS / "reference.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "p.toml").write_text(text, encoding="utf-8")
    found = read_pipeline(tmp_path / "p.toml")
    assert len(found.selections) == 2 * 3 and len(found.distillations) == 4 * 3
    smaller = next(one for one in found.distillations if one.name == "smaller")
    assert smaller.student == "experiment/runs/confident-kd-seed0" and smaller.prune == 0.5


def test_five_minutes__every_block_works(tmp_path, monkeypatch):
    (network, python), commands = blocks("five_minutes.md")
    (tmp_path / "my_nets.py").write_text(network, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import my_nets

    torch.save(my_nets.make_net().state_dict(), "teacher.pt")
    rng = np.random.default_rng(0)
    for name in ["photos/0", *(f"labeled/{k}" for k in range(10))]:
        Path(name).mkdir(parents=True)
        for i in range(40 if name == "photos/0" else 2):
            Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(f"{name}/{i}.png")
    for command in commands:
        assert cli.main(shlex.split(command.replace("--steps 500", "--steps 2 --batch-size 16"))[1:]) == 0, command
    made = {"selection.html", "report.html", "student.pt2", "run", "selection"}
    assert made <= {path.name for path in tmp_path.iterdir()}
    exec(python.replace("steps=500", "steps=2, batch_size=16"), {})
    monkeypatch.delitem(sys.modules, "my_nets")
