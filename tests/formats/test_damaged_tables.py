"""Files whose fields are missing, more, of another type or in another table, with a checksum that is right.

Every command that reads one answers with one line that names the field, and status 2; a field more changes nothing.
"""

import itertools
import json
import random
import shutil
import tomllib
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
import torch
from safetensors.torch import save_file

from dfkd.app import cli
from dfkd.distill.trainer import Trainer
from dfkd.models import cifar_resnet
from dfkd.system.checksums import entry, sealed, unsealed

NET = "cifar_resnet:depth=8,width=2,num_classes=3,in_channels=3"
OTHERS = 8
"""Of the fields that no reader needs, so many damages of each file are tried by the commands."""
MANIFEST = [
    *("format", "fingerprint", "teacher", "source", "count", "image", "image.encoded", "image.size", "image.channels"),
    *("classes", "per_class", "threshold", "admitted", "reasons", "unreadable", "files", "beside", "content"),
    *("files.0", "files.0.name", "files.0.rows", "files.0.bytes", "files.0.sha256", "beside.0.name", "beside.0.bytes"),
    *("content.teacher", "content.preprocess", "content.preprocess.normalize", "content.options", "content.seed"),
    "content.options.method",
]
CONFIG = ["format", "model", "model.architecture", "content"]
"""Of any run; a comparison reads more."""
COMPARED = [
    *("distill", "content.teacher", "content.teacher.architecture", "content.teacher.weights", "content.student"),
    *("content.normalize", "content.selections", "content.selected", "content.options", "content.compute"),
    *("content.compute.device", "content.compute.precision", "content.versions"),
]
RESULT = [
    *("name", "seed", "source", "student_parameters", "steps", "images_seen", "teacher_forwards", "seconds", "top1"),
    *("agreement", "teacher_top1", "test_images", "generator_steps", "begins"),
]
PROGRESS = ["format", "step", "seconds", "state", "state.bytes", "state.sha256"]


def run(*words):
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A selection, a finished run and one that was interrupted, and the commands that made them but for `--out`."""
    place = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    save_file(cifar_resnet(8, 2, 3, 3).state_dict(), place / "t.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    np.savez(place / "pool.npz", images=images)
    np.savez(place / "labeled.npz", images=images, labels=np.arange(24) % 3)
    teacher = ("--teacher", f"{NET}@{place / 't.safetensors'}")
    select = ("select", *teacher, "--normalize", "none", "--image-size", 8, "--pool", place / "pool.npz", "--count", 8)
    distill = ("distill", *teacher, "--student", NET, "--loss", "kd", "--init", "none", "--steps", 4)
    distill += ("--batch-size", 4, "--checkpoint-every", 2)
    step = Trainer.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFKD_CACHE", str(place / "cache"))
        assert run(*select, "--out", place / "s") == 0
        distill += ("--samples", place / "s")
        assert run(*distill, "--out", place / "r") == 0

        def interrupted(self):
            if self.step == 3:
                raise KeyboardInterrupt
            return step(self)

        patch.setattr(Trainer, "advance", interrupted)
        assert run(*distill, "--out", place / "begun") == 130
    return place, select, distill


@pytest.fixture
def answers(made, tmp_path, capsys, monkeypatch):
    """Write a file of a copy of what was made, and run the commands that read it: status and last line of each."""
    place, select, distill = made
    monkeypatch.setenv("DFKD_CACHE", str(place / "cache"))  # scores are found there

    def given(kind, table, commands):
        folder, file = {"manifest": ("s", "manifest.json"), "config": ("r", "config.toml")}.get(kind, ("r", kind))
        folder = "begun" if kind.startswith("checkpoint") else folder
        copy = tmp_path / folder
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(place / folder, copy)
        (copy / file).write_text((tomli_w.dumps if file.endswith("toml") else json.dumps)(sealed(table)))
        lines = {
            "inspect": ("inspect", copy),
            "verify": ("inspect", copy, "--verify"),
            "learn": (*distill[:-1], copy, "--steps", 2, "--out", tmp_path / "new"),
            "select": (*select, "--out", copy),
            "compare": ("compare", copy, "--out", tmp_path / "page.html"),
            "evaluate": ("evaluate", "--model", copy, "--data", place / "labeled.npz", "--image-size", 8),
            "distill": (*distill, "--out", copy),
        }
        for command in commands:
            shutil.rmtree(tmp_path / "new", ignore_errors=True)
            capsys.readouterr()
            status, said = run(*lines[command]), capsys.readouterr().err
            assert status in (0, 2), said
            assert "Traceback" not in said
            yield command, status, said.splitlines()[-1] if said else ""

    return given


def whole(place, kind):
    """The tables of a file as they were written."""
    path = {"manifest": place / "s/manifest.json", "config": place / "r/config.toml"}.get(kind)
    path = path or place / ("begun" if kind.startswith("checkpoint") else "r") / kind
    return unsealed((tomllib.loads if path.suffix == ".toml" else json.loads)(path.read_text()))


def steps_to(name):
    """The keys and numbers of a path; a name with a dot in it is a file's."""
    parts = name.replace(".safetensors", "/safetensors").replace(".jsonl", "/jsonl").split(".")
    return [int(part) if part.isdecimal() else part.replace("/", ".") for part in parts]


def other(value):
    """A value of another type, which TOML can hold too."""
    return "x" if isinstance(value, (list, int, float)) else [1]


def damaged(table, name, how):
    """A copy of the tables with one field wrong."""
    table = json.loads(json.dumps(table))
    *above, last = steps_to(name)
    within = reduce(lambda found, key: found[key], above, table)
    value = within.pop(last)
    if how == "type":
        within.insert(last, other(value)) if isinstance(within, list) else within.update({last: other(value)})
    if how == "nested":
        nested = {"within": value}
        within.insert(last, nested) if isinstance(within, list) else within.update({last: nested})
    return table


def names(table, above=""):
    """The path of every value within tables and lists."""
    for key in table if isinstance(table, dict) else range(len(table)) if isinstance(table, list) else ():
        yield f"{above}{key}"
        yield from names(table[key], f"{above}{key}.")


NEEDED = {
    "manifest": {"inspect": MANIFEST, "verify": MANIFEST, "learn": MANIFEST, "select": MANIFEST},
    "config": {"verify": CONFIG, "evaluate": CONFIG, "compare": CONFIG[:1] + COMPARED, "distill": CONFIG},
    "result.json": {"verify": ["files"], "evaluate": ["files"], "compare": ["files", *RESULT], "distill": RESULT},
    "checkpoint/progress.json": {"verify": PROGRESS, "distill": PROGRESS},
}


FREE = {"config": ["content", "content.options"]}
"""Tables whose fields no reader knows: a table more within is a field more."""


@pytest.mark.parametrize("how", ["missing", "type", "nested"])
@pytest.mark.parametrize("kind", NEEDED)
def test_commands__name_a_wrong_field_in_one_line(made, answers, kind, how):
    """One field after another, each by another of the commands that need it: all have one reader."""
    table, turn = whole(made[0], kind), itertools.count()
    for name in dict.fromkeys(name for fields in NEEDED[kind].values() for name in fields):
        listed = name.rpartition(".")[2].isdecimal()
        if (how == "missing" and listed) or (how == "nested" and name in FREE.get(kind, [])):
            continue  # a list that is shorter, or a field more
        commands = [command for command, fields in NEEDED[kind].items() if name in fields]
        (answer,) = answers(kind, damaged(table, name, how), [commands[next(turn) % len(commands)]])
        command, status, line = answer
        assert status == 2, (command, name, line)
        assert line.startswith("dfkd")
        last = [part for part in steps_to(name) if isinstance(part, str)][-1]
        assert last in line, (command, name, line)


@pytest.mark.parametrize("kind", NEEDED)
def test_commands__meet_any_wrong_field_without_a_traceback(made, answers, kind):
    """Fields that a command may do without: it goes on, or says so in a line."""
    table = whole(made[0], kind)
    needed = {name for fields in NEEDED[kind].values() for name in fields}
    others = [(name, how) for name in names(table) if name not in needed for how in ("missing", "type", "nested")]
    for number, (name, how) in enumerate(random.Random(0).sample(others, min(OTHERS, len(others)))):
        command = [*NEEDED[kind]][number % len(NEEDED[kind])]
        assert len([*answers(kind, damaged(table, name, how), [command])]) == 1


@pytest.mark.parametrize("kind", NEEDED)
def test_commands__accept_a_field_more(made, answers, kind):
    table = whole(made[0], kind)
    table["more"] = {"a": [1]}
    for value in table.values():
        if isinstance(value, dict) and value is not table.get("content"):
            value["more"] = "x"
    for fields in (table.get("files"), table.get("beside")):
        for file in fields if isinstance(fields, list) else ():
            file["more"] = 1
    table.get("files", {}).pop("more", None) if isinstance(table.get("files"), dict) else None
    table.get("reasons", {}).pop("more", None)
    for command, status, line in answers(kind, table, NEEDED[kind]):
        assert status == 0, (command, line)


@pytest.mark.parametrize("change", ["no column", "text", "lists", "no reason"])
def test_inspect__names_a_wrong_column_of_the_scores(made, tmp_path, capsys, change):
    folder = tmp_path / "s"
    shutil.copytree(made[0] / "s", folder)
    scores = pq.read_table(folder / "scores.parquet")
    column = "reason" if change == "no reason" else "entropy"
    where = scores.column_names.index(column)
    scores = scores.remove_column(where)
    if change in ("text", "lists"):
        scores = scores.add_column(where, column, pa.array([["x"] if change == "lists" else "x"] * len(scores)))
    pq.write_table(scores, folder / "scores.parquet")
    manifest = unsealed(json.loads((folder / "manifest.json").read_text()))
    for file in manifest["beside"]:
        file.update(entry(folder / file["name"]))
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    assert run("inspect", folder) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "s/scores.parquet cannot be read" in line and column in line
