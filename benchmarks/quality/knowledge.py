"""Three hypotheses on what distillation does to a student's knowledge (arXiv 2003.03622).

    python benchmarks/quality/knowledge.py digits OUT_DIR     scikit-learn's digits: minutes
    python benchmarks/quality/knowledge.py cifar10 OUT_DIR    needs DFKD_DATA and DFKD_TEACHERS

The hypotheses compare a student of a teacher with the same network trained on labels. The student (1) uses more visual
concepts of the foreground, (2) learns them sooner and more at once, (3) with fewer detours. A third row learns from the
teacher on photographs without an object of the task: patches of two photographs, or Tiny-ImageNet. A pipeline trains
the networks, and resumes after an interruption. The figures are those of `dfkd explain` on held-out images. The
foreground of a digit is its ink. CIFAR-10 has no masks: its foreground is the central square of half the side. The
script writes the figures to OUT_DIR/knowledge.json, and three charts to OUT_DIR/knowledge.html.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import tomli_w
import torch
from trees import AS_THEY_ARE, NETWORK, SHIFTED, prepare

from dfkd.app import cli, demo
from dfkd.config.stages.shared import Input
from dfkd.models.classifier import Classifier
from dfkd.models.load import load_trained
from dfkd.report.charts import figure, lines, strips
from dfkd.report.knowledge import Knowledge, knowledge
from dfkd.report.knowledge_page import curve
from dfkd.report.markup import section, tag, write_page
from dfkd.system.device import machine, resolve_place
from dfkd.system.files import write_json

MOMENTS, IMAGES = 5, 12
INK = 64
"""Gray level from which a pixel is foreground."""
LABELED, HELD_OUT = 10_000, 2_000
"""Images of CIFAR-10 to learn from and to test on."""
ROWS = {
    "labels": "the labels of the task's images",
    "teacher": "the teacher, on the task's images",
    "photographs": "the teacher, on photographs",
}
ITSELF = "the teacher itself"
"""Name of the teacher's own figures, which are shown beside those of the rows."""
HYPOTHESES = {
    "1. More concepts on the foreground": ("on the foreground", "share on the foreground"),
    "2. Concepts that come sooner, and more at once": ("D mean", "D std"),
    "3. Fewer detours": ("rho",),
}


@dataclass(frozen=True)
class Task:
    """Images and networks of one comparison."""

    prepare: Callable[[Path], dict]
    """Writes the labeled images and heldout.npz to a folder, and returns the options that all rows share."""
    labeled: str
    """Name of the file of labeled images."""
    foreground: Callable[[np.ndarray], np.ndarray]
    """Returns the masks [images, height, width] of pixels [images, height, width, channels]."""
    photographs: int
    """Number of photographs that are selected."""
    steps: int
    seeds: tuple[int, ...]


def digits(out):
    """Write scikit-learn's digits, patches of photographs, and a teacher."""
    prepare(out)
    return demo.options(out)


def cifar10(out):
    """Write some images of CIFAR-10. The teacher and the photographs are those of DFKD_TEACHERS and DFKD_DATA."""
    data = Path(os.environ.get("DFKD_DATA", "data"))
    for name, source, count in (
        ("labeled.npz", "cifar10_train40k.npz", LABELED),
        ("heldout.npz", "cifar10_heldout10k.npz", HELD_OUT),
    ):
        with np.load(data / source) as found:
            demo.save(out / name, lambda found=found, count=count: {key: found[key][:count] for key in found})
    return {
        "teacher": "cifar_resnet:depth=20,width=32@$DFKD_TEACHERS/cifar10_resnet20_w32_train40k.pt",
        "normalize": "cifar10",
        "image_size": 32,
        "pool": ["$DFKD_DATA/pool_tiny_imagenet_32.npz"],
        "student": "cifar_resnet:depth=20",
        "test": str(out / "heldout.npz"),
    }


def center(pixels):
    """Return masks of the central square of half the side."""
    masks = np.zeros(pixels.shape[:3], dtype=bool)
    side = pixels.shape[1]
    masks[:, side // 4 : side - side // 4, side // 4 : side - side // 4] = True
    return masks


TASKS = {
    "digits": Task(digits, "digits.npz", lambda pixels: pixels[..., 0] >= INK, 5_000, 200, (0, 1, 2)),
    "cifar10": Task(cifar10, "labeled.npz", center, 10_000, 300, (0, 1)),
}


def tables(out, shared, task):
    """Return the pipeline: the teacher and the images of each row."""
    labeled = out / task.labeled
    with np.load(labeled) as found:
        count = len(found["labels"])
    alike = {"keep_weights": MOMENTS, **{key: value for key, value in NETWORK.items() if key != "student"}}
    by_labels = f"labeled.labels:file={labeled},normalize={shared['normalize']}"
    return {
        "out": str(out),
        "seeds": list(task.seeds),
        "defaults": {**shared, "steps": task.steps},
        "select": {
            "task": {"pool": [str(labeled)], "method": "random", "count": count, "filter": "none"},
            "photographs": {"method": "confidence", "balance": "class", "count": task.photographs},
        },
        "distill": {
            "labels": {**alike, **AS_THEY_ARE, "samples": ["task"], "teacher": by_labels},
            "teacher": {**alike, **AS_THEY_ARE, "samples": ["task"]},
            "photographs": {**alike, **SHIFTED, "samples": ["photographs"]},
        },
    }


def counted(found: Knowledge, name):
    """Return the figures of a network, and those of its training if it kept weights."""
    on, off, share = found.counts()[name]
    values = {"on the foreground": on, "on the background": off, "share on the foreground": share}
    values |= found.learning[name].measures() if name in found.learning else {}
    return {name: None if math.isnan(value) else round(value, 4) for name, value in values.items()}


def known(networks, name):
    """Return a figure of each seed that has it."""
    return [one[name] for one in networks if one[name] is not None]


def measure(name, out, task, images=IMAGES):
    """Train, count, and write the figures of the task. Returns the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    shared = task.prepare(out)
    file = out / "knowledge.toml"
    file.write_text(tomli_w.dumps(tables(out, shared, task)), encoding="utf-8")
    if status := cli.main(["run", str(file)]):
        return status
    place = resolve_place("auto", "fp32")
    with np.load(out / "heldout.npz") as heldout:
        rows = np.linspace(0, len(heldout["images"]) - 1, images).round().astype(int)
        pixels = heldout["images"][rows]
    masks = task.foreground(pixels)
    load = partial(load_trained, input=Input(shared["normalize"], shared["image_size"]))
    teacher = Classifier(load(os.path.expandvars(shared["teacher"])), place)
    result = {ITSELF: counted(knowledge({ITSELF: teacher}, {}, pixels, masks), ITSELF)}
    curves = {}
    for row in ROWS:
        result[row] = []
        for seed in task.seeds:
            run = run_of(out, row, seed)
            found = knowledge({row: Classifier(load(str(run)), place)}, {row: run}, pixels, masks)
            top1 = json.loads((run / "result.json").read_text())["top1"]
            result[row].append({"seed": seed, "top1": top1, **counted(found, row)})
            curves.setdefault(row, []).append(curve(found.learning[row]))
    about = {"command": f"python benchmarks/quality/knowledge.py {name} OUT_DIR", "date": str(date.today())}
    about |= {**machine(torch.device("cpu")), "images": images, "moments": MOMENTS, "steps": task.steps}
    write_json(out / "knowledge.json", {**about, "networks": result, "curves": curves})
    page(out / "knowledge.html", name, result, curves)
    print(table(out / "knowledge.json"))
    return 0


def run_of(out, name, seed):
    """Return the folder of a row's run."""
    (found,) = (run for run in (out / "runs").iterdir() if _is(run, name, seed))
    return found


def _is(run, name, seed):
    result = run / "result.json"
    read = json.loads(result.read_text()) if result.exists() else {}
    return (read.get("name"), read.get("seed")) == (name, seed)


def page(path, name, result, curves):
    """Write the page with three charts."""
    parts = []
    for heading, names in HYPOTHESES.items():
        charts = []
        for one in names:
            values = {words: found for row, words in ROWS.items() if (found := known(result[row], one))}
            charts.append(figure(f"{one}, a dot a seed", strips(values, result[ITSELF].get(one), "{:.3g}".format)))
        parts.append(section(heading, *charts))
    means = {
        row: [tuple(map(fmean, zip(*at, strict=True))) for at in zip(*of, strict=True)] for row, of in curves.items()
    }
    drawn = lines("Concepts over weight distance", "Means over seeds", means, {row: k for k, row in enumerate(means)})
    note = "Visual concepts of held-out images. Broken lines: the teacher."
    write_page(
        path,
        f"Quantified knowledge: {name}",
        tag("p", note, class_="note"),
        *parts,
        figure("visual concepts on the foreground over weight distance, means over seeds", drawn),
    )


def table(file):
    """Return the stored figures as Markdown: the mean over seeds, with the lowest and the highest."""
    networks = json.loads(file.read_text(encoding="utf-8"))["networks"]
    names = [name for names in HYPOTHESES.values() for name in names]
    lines = [f"| learns from | top-1 % | {' | '.join(names)} |", "| --- |" + " ---: |" * (len(names) + 1)]
    for row, words in ROWS.items():
        top1 = f"{100 * fmean(one['top1'] for one in networks[row]):.1f}"
        cells = [_span(known(networks[row], name)) for name in names]
        lines.append(f"| {words} | {top1} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _span(values):
    return "-" if not values else f"{fmean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("out", metavar="OUT_DIR", type=Path)
    args = parser.parse_args()
    sys.exit(measure(args.task, args.out, TASKS[args.task]))
