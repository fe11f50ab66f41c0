"""Soft decision trees on MNIST, where their paper has its figures: from labels, from a teacher, and beside a network.

    DFKD_DATA=FOLDER python benchmarks/quality/mnist.py OUT_DIR [ROW ...]

FOLDER/MNIST/raw has the four IDX files of MNIST. The teacher is LeNet-5, trained by train_teacher.py on the first
55,000 training images. The settings were chosen on the other 5,000. The accuracy is that on the 10,000 test images.
The rows `photographs` learn from patches of photographs, without a digit. All others learn from the 55,000.

The script writes a pipeline and runs it by `dfkd run`, so it resumes after an interruption. OUT_DIR/mnist.csv has a row
per run, with the accuracy of a tree's mixture beside that of its likeliest leaf. keep.py keeps it as trees-mnist.csv.
"""

import csv
import statistics
import sys
from pathlib import Path

import numpy as np
import tomli_w
import torch
import train_teacher

from dfkd.app import cli, demo
from dfkd.data import open_pool
from dfkd.models.classifier import Classifier
from dfkd.models.load import load_model
from dfkd.system.device import Place
from dfkd.system.files import replacing
from dfkd.training.evaluate import measure

TRAIN, TEST = "torchvision:MNIST:train", "torchvision:MNIST:test"
LEARNED, SIDE, PATCHES = 55_000, 28, 20_000
SEEDS, STEPS = (0, 1, 2), 5_000
ADAM = {"optimizer": "adamw", "weight_decay": 0.0}
TREE = {"student": "soft_tree:depth=8,beta=0.3", "lr": 0.002, **ADAM}
FURTHER = {"student": "run:tree-teacher", "lr": 0.001, "steps": 7000, **ADAM}
FREER = {"student": "run:tree-teacher-further", "lr": 0.001, "steps": 2500, "loss": ["tree:penalty=0.01"], **ADAM}
NETWORK = {"student": "lenet5_half", "loss": ["kd:temperature=1"], "init": "none", "steps": 1500}
AS_THEY_ARE, SHIFTED = {"crop_padding": 0, "teacher_views": 1}, {"crop_padding": 1, "teacher_views": 4}
ROWS = {
    "tree-teacher": ("digits", TREE | AS_THEY_ARE),
    "tree-labels": ("digits", TREE | AS_THEY_ARE),
    "tree-teacher-further": ("digits", FURTHER | AS_THEY_ARE),
    "tree-teacher-freer": ("digits", FREER | AS_THEY_ARE),
    "network-teacher": ("digits", NETWORK | AS_THEY_ARE),
    "tree-photographs": ("photographs", TREE | SHIFTED),
    "tree-teacher-shifted": ("digits", TREE | SHIFTED),
}
REPEATED = ("tree-labels", "tree-teacher")
"""Rows with three seeds. The others have one."""
MIXTURE = "mixture_top1"
"""Column of mnist.csv: accuracy of the mean over a tree's leaves. `top1` is that of the likeliest leaf."""


def prepare(out):
    """Write the training images, those for the choice of settings, the patches and the teacher. Returns the status."""
    out.mkdir(parents=True, exist_ok=True)
    parts = {"train.npz": slice(LEARNED), "heldout.npz": slice(LEARNED, None)}
    if not all((out / name).exists() for name in parts):
        pool = open_pool([TRAIN], image_size=SIDE, channels=1)
        pixels, classes = pool.images(np.arange(len(pool))).pixels, pool.labels()
        for name, rows in parts.items():
            demo.save(out / name, lambda rows=rows: {"images": pixels[rows], "labels": classes[rows]})
    demo.save(out / "patches.npz", lambda: {"images": demo.patches(PATCHES)})
    model = ("--model", "lenet5", "--normalize", demo.NORMALIZE, "--image-size", str(SIDE))
    data = ("--data", str(out / "train.npz"), "--test", str(out / "heldout.npz"), "--out", str(out / "teacher"))
    return train_teacher.main([*model, *data, "--epochs", "4", "--no-flip"])


def tables(out, names, seeds, steps, test):
    """Return the pipeline: the teacher and the images of each row."""
    pools = {"digits": (out / "train.npz", LEARNED), "photographs": (out / "patches.npz", PATCHES)}
    return {
        "out": str(out),
        "seeds": list(seeds),
        "defaults": {
            "teacher": str(out / "teacher"),
            "normalize": demo.NORMALIZE,
            "image_size": SIDE,
            "flip": False,
            "steps": steps,
            "test": test,
        },
        "select": {
            name: {"pool": [str(file)], "method": "random", "count": count, "filter": "none"}
            for name, (file, count) in pools.items()
            if name in {ROWS[row][0] for row in names}
        },
        "distill": {
            name: {"samples": [ROWS[name][0]], **ROWS[name][1]}
            | ({"teacher": f"labeled.labels:file={out / 'train.npz'}"} if "labels" in name else {})
            for name in names
        },
    }


def mixture(run, test):
    """Return the accuracy of the mean over a tree's leaves, or an empty text for a network."""
    model = load_model(run)
    if not hasattr(model.module, "predict"):
        return ""
    model.module.predict = "mixture"
    place = Place(torch.device("cpu"), torch.float32)
    return measure(Classifier(model, place), test, 1000).top1


def measured(out, names, steps=STEPS, test=TEST):
    """Run a pipeline for the first seed, and one for the others, and write the result file. Returns the exit status."""
    status, file = prepare(out), out / "mnist.toml"
    for seeds, rows in ((SEEDS[:1], names), (SEEDS[1:], [name for name in names if name in REPEATED])):
        if status == 0 and rows:
            file.write_text(tomli_w.dumps(tables(out, rows, seeds, steps, test)), encoding="utf-8")
            status = cli.main(["run", str(file)])
    return status or results(out, test)


def results(out, test):
    """Compare all runs of the folder and write the result file. Returns the exit status."""
    status = cli.main(["compare", *sorted(map(str, (out / "runs").iterdir())), "--out", str(out / "report.html")])
    if status == 0:
        with (out / "report.csv").open(encoding="utf-8", newline="") as opened:
            lines = list(csv.DictReader(opened))
        images = open_pool([test], image_size=SIDE, channels=1)
        for line in lines:
            line[MIXTURE] = mixture(line["folder"], images)
            line["folder"] = Path(line["folder"]).relative_to(out).as_posix()
            if "labels" in line["name"]:  # the network of labels does not know the test images
                line["agreement"] = line["teacher_top1"] = ""
        with replacing(out / "mnist.csv") as partial, partial.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, lines[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    return status


WORDS = {
    "labels": "labels",
    "teacher": "the teacher",
    "teacher-further": "the teacher, 7,000 steps more",
    "teacher-freer": "the same, then 2,500 with `penalty=0.01`",
    "teacher-shifted": "the teacher, on shifted digits",
    "photographs": "the teacher, on patches of photographs",
}


def table(file):
    """Return the result file as Markdown."""
    with file.open(encoding="utf-8", newline="") as opened:
        lines = list(csv.DictReader(opened))
    rows = ["| learns from | tree, likeliest leaf | tree, mixture | network |", "| --- | ---: | ---: | ---: |"]
    for source, words in WORDS.items():
        columns = ((f"tree-{source}", "top1"), (f"tree-{source}", MIXTURE), (f"network-{source}", "top1"))
        if f"tree-{source}" in {line["name"] for line in lines}:
            rows.append(f"| {words} | {' | '.join(percent(lines, *column) for column in columns)} |")
    return "\n".join(rows)


def percent(lines, name, column):
    """Return the mean over the seeds, and the standard deviation of several."""
    values = [100 * float(line[column]) for line in lines if line["name"] == name]
    if len(values) > 1:
        return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
    return f"{values[0]:.2f}" if values else "-"


if __name__ == "__main__":
    if len(sys.argv) < 2 or not {*sys.argv[2:]} <= {*ROWS}:
        sys.exit(f"{__doc__}\nROW is one of {', '.join(ROWS)}")
    sys.exit(measured(Path(sys.argv[1]), sys.argv[2:] or list(ROWS)))
