"""The examples of docs/own.md, run through the real commands as they stand there."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
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
