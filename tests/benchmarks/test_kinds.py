"""The scripts of students that are no networks, and of smaller ones: their pipelines."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tomli_w
import torch

from dfkd.app.pipeline_file import read_pipeline
from dfkd.data.images.normalize import Normalization, parse_normalize


@pytest.fixture
def rows(tmp_path):
    """The rows of a script's pipeline, by name."""

    def read(tables):
        (tmp_path / "file.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
        return {row.name: row for row in read_pipeline(tmp_path / "file.toml").distillations}

    return read


def test_trees__differ_in_who_teaches_and_on_what(script, rows, tmp_path):
    np.savez(tmp_path / "digits.npz", labels=np.arange(7))
    found = rows(script("trees").tables(tmp_path, [0], 3))
    assert [name for name, row in found.items() if row.teacher.startswith("labeled.labels")] == [
        "tree-labels",
        "network-labels",
    ]
    for name, row in found.items():
        assert row.student.startswith("soft_tree") == name.startswith("tree")
        assert row.crop_padding == (0 if name.split("-")[-1] in ("labels", "teacher") else 1)


@pytest.mark.parametrize(("channels", "normalize"), [(1, "0.5/0.5"), (3, "cifar10")])
def test_labels__are_those_of_the_images(script, tmp_path, channels, normalize):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, channels), dtype=np.uint8)
    np.savez(tmp_path / "labeled.npz", images=images, labels=np.array([3, 1, 4, 1, 5]))
    network = script("labeled").labels(str(tmp_path / "labeled.npz"), in_channels=channels, normalize=normalize)
    view = Normalization(*parse_normalize(normalize, channels))(torch.from_numpy(images))
    assert network(view).softmax(dim=1).argmax(dim=1).tolist() == [3, 1, 4, 1, 5]
    assert network(view)[0].softmax(dim=0)[3] == 1
    assert network(-torch.ones(2, channels, 28, 28)).shape == (2, 10), "images that it does not know"


def test_mnist__writes_a_row_for_each_run_with_both_accuracies_of_a_tree(script, tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("t10k", 20)):
        head = [np.array(numbers, dtype=">i4").tobytes() for numbers in ((2051, count, 28, 28), (2049, count))]
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8).tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head[0] + pixels)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(head[1] + (np.arange(count, dtype=np.uint8) % 10).tobytes())
    monkeypatch.setenv("DFKD_DATA", str(tmp_path))
    module = script("mnist")
    monkeypatch.setattr(module, "LEARNED", 40)
    monkeypatch.setattr(module, "PATCHES", 8)
    names = ["tree-labels", "tree-photographs"]
    assert module.measured(tmp_path / "out", names, steps=2) == 0
    with (tmp_path / "out" / "mnist.csv").open(encoding="utf-8", newline="") as opened:
        lines = {line["folder"]: line for line in csv.DictReader(opened)}
    seeds = {f"runs/tree-labels-seed{seed}" for seed in range(3)}
    assert lines.keys() == {"runs/tree-photographs-seed0", *seeds}
    assert all(0 <= float(line["mixture_top1"]) <= 1 for line in lines.values())
    assert {line["test_images"] for line in lines.values()} == {"20"}
    assert [bool(line["agreement"]) == ("labels" in folder) for folder, line in lines.items()] == [False] * 4


@pytest.mark.parametrize("setting", ["digits", "cifar10"])
def test_compress__quantizes_every_row(script, rows, tmp_path, monkeypatch, setting):
    monkeypatch.setenv("DFKD_TEACHERS", "teachers")
    module = script("compress")
    found = rows(module.tables(module.SETTINGS[setting], tmp_path))
    whole = {name for name in found if not name.endswith("int8")}
    assert {f"{name}-int8" for name in whole} == found.keys() - whole
    for name in whole:
        assert Path(found[f"{name}-int8"].student) == Path(found[name].out)
        assert (
            (found[name].prune is not None) == name.startswith("pruned") == (found[name].student == found[name].teacher)
        )


@pytest.mark.parametrize("task", ["digits", "cifar10"])
def test_knowledge__differs_in_who_teaches_and_on_what(script, rows, tmp_path, monkeypatch, task):
    module = script("knowledge")
    monkeypatch.setenv("DFKD_DATA", str(tmp_path))
    monkeypatch.setenv("DFKD_TEACHERS", "teachers")
    of = {"images": np.zeros((7, 32, 32, 3), np.uint8), "labels": np.arange(7)}
    for name in ("cifar10_train40k", "cifar10_heldout10k", "digits"):
        np.savez(tmp_path / f"{name}.npz", **of)
    monkeypatch.setattr(module, "prepare", lambda out: None)
    monkeypatch.setattr(module, "LABELED", 5)
    chosen = module.TASKS[task]
    found = rows(module.tables(tmp_path, chosen.prepare(tmp_path), chosen))
    assert [*found] == [*module.ROWS] and {row.keep_weights for row in found.values()} == {module.MOMENTS}
    assert [name for name, row in found.items() if row.teacher.startswith("labeled.labels")] == ["labels"]
    assert len({(row.student, row.loss, row.init, row.steps) for row in found.values()}) == 1
    if task == "cifar10":
        assert len(np.load(tmp_path / "labeled.npz")["labels"]) == 5
        assert found["teacher"].student == "cifar_resnet:depth=20"


def test_knowledge__foreground_of_cifar10_is_the_central_square(script):
    masks = script("knowledge").center(np.zeros((2, 32, 32, 3), np.uint8))
    rows, columns = np.nonzero(masks[1])
    assert masks.shape == (2, 32, 32) and masks[0].sum() == 16 * 16
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 23, 8, 23)


def test_knowledge__its_table_has_means_and_ranges(script, tmp_path):
    module = script("knowledge")
    names = [name for found in module.HYPOTHESES.values() for name in found]
    seeds = [{"top1": 0.5 + k, **dict.fromkeys(names, 1.0 + k)} for k in (0, 0.25)]
    seeds[1]["rho"] = None
    (tmp_path / "kept.json").write_text(json.dumps({"networks": dict.fromkeys(module.ROWS, seeds)}))
    line = module.table(tmp_path / "kept.json").splitlines()[2]
    assert line == f"| {module.ROWS['labels']} | 62.5 |{' 1.12 (1 to 1.25) |' * (len(names) - 1)} 1 (1 to 1) |"


def test_knowledge__keeps_the_teachers_own_figures_beside_those_of_the_row_teacher(script, tmp_path, monkeypatch):
    module = script("knowledge")
    names = [name for found in module.HYPOTHESES.values() for name in found]
    figures = dict.fromkeys(names, 2.0)
    found = SimpleNamespace(learning=dict.fromkeys(module.ROWS))
    np.savez(tmp_path / "heldout.npz", images=np.zeros((3, 8, 8, 1), np.uint8))
    for name in module.ROWS:
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps({"name": name, "seed": 0, "top1": 0.5}))
    task = replace(module.TASKS["digits"], prepare=lambda out: {"normalize": "", "image_size": 8, "teacher": "t"})
    played = {
        "tables": lambda *given: {},
        "load_trained": lambda *given, **more: None,
        "Classifier": lambda *given: None,
        "knowledge": lambda *given: found,
        "counted": lambda found, name: figures | {"rho": 0.25 if name == module.ITSELF else 1.0},
        "curve": lambda of: [(0.0, 1.0), (1.0, 3.0)],
    }
    for name, play in played.items():
        monkeypatch.setattr(module, name, play)
    monkeypatch.setattr(module.cli, "main", lambda command: 0)
    assert module.measure("digits", tmp_path, replace(task, seeds=(0,))) == 0
    networks = json.loads((tmp_path / "knowledge.json").read_text())["networks"]
    assert networks[module.ITSELF]["rho"] == 0.25 and [one["rho"] for one in networks["teacher"]] == [1.0]
    titles = re.findall(r"<h2[^>]*>([^<]+)</h2>", (tmp_path / "knowledge.html").read_text())
    assert module.HYPOTHESES.keys() <= set(titles)


@pytest.mark.parametrize(
    ("name", "file", "page"),
    [
        ("knowledge", "knowledge-digits.json", "reference.md"),
        ("compress", "compress-digits.csv", "teaching.md"),
        ("compress", "compress-cifar10.csv", "teaching.md"),
        ("trees", "trees-digits.csv", "teaching.md"),
        ("mnist", "trees-mnist.csv", "teaching.md"),
    ],
)
def test_table__of_a_page_is_that_of_the_result_file(script, name, file, page):
    root = Path(__file__).parents[2]
    assert script(name).table(root / "benchmarks" / "quality" / "results" / file) in (root / "docs" / page).read_text()


@pytest.mark.parametrize("setting", ["digits", "cifar10"])
def test_teachers__rows_differ_in_the_teachers_alone(script, rows, tmp_path, monkeypatch, setting):
    monkeypatch.setenv("DFKD_TEACHERS", "teachers")
    module = script("teachers")
    three = [f"cifar_resnet:depth=20@{name}.pt" for name in "abc"]
    found = rows(module.pipeline(setting, tmp_path, three, ["one", "two", "three", "three-learned"]))
    assert [row.teacher for row in found.values()] == [tuple(three[:count]) for count in (1, 2, 3, 3)]
    assert [row.mixing for row in found.values()] == [None, None, None, "learned"]
    assert len({(row.student, row.loss, row.init, row.steps) for row in found.values()}) == 1
    of = next(iter(found.values()))
    assert (of.loss, of.init, of.steps) == {"digits": (("kd",), "none", 400), "cifar10": ((), "auto", 1000)}[setting]
