"""A soft decision tree beside a network: from labels, from a teacher, and without the digits. On scikit-learn's digits.

    python benchmarks/quality/trees.py OUT_DIR

The script writes a pipeline and runs it by `dfkd run`, so it resumes after an interruption. OUT_DIR/report.csv has a
row per run; benchmarks/quality/keep.py keeps it as trees-digits.csv. The published figures are of MNIST, which this
repository does not have. Labels are a teacher here (labeled.py).
"""

import sys
from pathlib import Path

import numpy as np
import tomli_w

from dfkd.app import cli, demo
from dfkd.report.table import read_csv, with_deviation

TREE = "soft_tree:depth=6,beta=0.3"
TREES = {"student": TREE, "optimizer": "adamw", "lr": 0.02, "weight_decay": 0.0}
NETWORK = {"student": demo.STUDENT, "loss": ["kd:temperature=1"], "init": "none"}
AS_THEY_ARE = {"crop_padding": 0, "flip": False}
SHIFTED = {"crop_padding": 1, "flip": False}
PATCHES = 20_000


def prepare(folder):
    """Write the teacher, its training digits, the held-out digits, and patches of photographs."""
    demo.prepare_teacher(folder)
    images, classes = demo.digits()
    with np.load(folder / "heldout.npz") as heldout:
        held = {image.tobytes() for image in heldout["images"]}
    rows = [row for row, image in enumerate(images) if image.tobytes() not in held]
    demo.save(folder / "digits.npz", lambda: {"images": images[rows], "labels": classes[rows]})
    demo.save(folder / "pool.npz", lambda: {"images": demo.patches(PATCHES)})


def tables(out, seeds, steps):
    """Return the pipeline: the teacher and the images of each row."""
    digits, teacher = str(out / "digits.npz"), f"{demo.TEACHER}@{out / 'teacher.safetensors'}"
    by_labels = {"teacher": f"labeled.labels:file={digits}"}
    rows = {
        "tree-labels": TREES | AS_THEY_ARE | by_labels,
        "tree-teacher": TREES | AS_THEY_ARE,
        "tree-teacher-shifted": TREES | SHIFTED,
        "network-labels": NETWORK | AS_THEY_ARE | by_labels,
        "network-teacher": NETWORK | AS_THEY_ARE,
        "network-teacher-shifted": NETWORK | SHIFTED,
    }
    photographs = {"tree-photographs": TREES | SHIFTED, "network-photographs": NETWORK | SHIFTED}
    return {
        "out": str(out),
        "seeds": seeds,
        "defaults": {**demo.options(out), "teacher": teacher, "steps": steps},
        "select": {
            "digits": {"pool": [digits], "method": "random", "count": len(np.load(digits)["labels"]), "filter": "none"},
            "photographs": {"method": "confidence", "balance": "class", "count": PATCHES // 4},
        },
        "distill": {name: {**options, "samples": ["digits"]} for name, options in rows.items()}
        | {name: {**options, "samples": ["photographs"]} for name, options in photographs.items()},
    }


def measure(out, seeds=(0, 1, 2), steps=400):
    """Run the pipeline. Returns the exit status of the command."""
    out.mkdir(parents=True, exist_ok=True)
    prepare(out)
    file = out / "trees.toml"
    file.write_text(tomli_w.dumps(tables(out, list(seeds), steps)), encoding="utf-8")
    return cli.main(["run", str(file)])


WORDS = {"labels": "the digits' labels", "teacher": "the teacher, on the digits as they are"}
WORDS |= {"teacher-shifted": "the teacher, on shifted digits", "photographs": "the teacher, on patches of photographs"}


def table(file):
    """Return the stored comparison as Markdown."""
    rows = {row.name: with_deviation(row, "top1") for row in read_csv(file.read_text(encoding="utf-8"))}
    lines = ["| learns from | tree, top-1 % | network, top-1 % |", "| --- | ---: | ---: |"]
    return "\n".join(
        [*lines, *(f"| {words} | {rows[f'tree-{k}']} | {rows[f'network-{k}']} |" for k, words in WORDS.items())]
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(measure(Path(sys.argv[1])))
