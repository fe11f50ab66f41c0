"""Three hypotheses on what distillation does to a student's knowledge (arXiv 2003.03622), on scikit-learn's digits.

    python benchmarks/quality/knowledge.py OUT_DIR

The hypotheses compare a student of a teacher with the same network trained on labels. The student (1) uses more visual
concepts of the foreground, (2) learns them sooner and more at once, (3) with fewer detours. A third row learns from the
teacher on patches of photographs, without a digit. A pipeline trains the networks, and resumes after an interruption.
The figures are those of `dfkd explain` on held-out digits, whose foreground is the ink. The script writes them to
OUT_DIR/knowledge.json, and three charts to OUT_DIR/knowledge.html.
"""

import json
import math
import sys
from datetime import date
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import tomli_w
import torch
from trees import AS_THEY_ARE, NETWORK, SHIFTED, prepare

from dfkd.app import cli, demo
from dfkd.models.classifier import Classifier
from dfkd.models.load import load_trained
from dfkd.report.charts import figure, lines, strips
from dfkd.report.knowledge import Knowledge, knowledge
from dfkd.report.knowledge_page import curve
from dfkd.report.markup import section, tag, write_page
from dfkd.system.device import machine, resolve_place
from dfkd.system.files import write_json

SEEDS, STEPS, MOMENTS, IMAGES = (0, 1, 2), 200, 5, 12
INK = 64
"""Gray level from which a pixel is foreground."""
ROWS = {
    "labels": "the digits' labels",
    "teacher": "the teacher, on the digits",
    "photographs": "the teacher, on patches of photographs",
}
ITSELF = "the teacher itself"
"""Name of the teacher's own figures, which are shown beside those of the rows."""
HYPOTHESES = {
    "1. More concepts on the foreground": ("on the foreground", "share on the foreground"),
    "2. Concepts that come sooner, and more at once": ("D mean", "D std"),
    "3. Fewer detours": ("rho",),
}


def tables(out, seeds, steps):
    """Return the pipeline: the teacher and the images of each row."""
    digits, teacher = str(out / "digits.npz"), f"{demo.TEACHER}@{out / 'teacher.safetensors'}"
    shared = {**NETWORK, "keep_weights": MOMENTS}
    return {
        "out": str(out),
        "seeds": list(seeds),
        "defaults": {**demo.options(out), "teacher": teacher, "steps": steps},
        "select": {
            "digits": {"pool": [digits], "method": "random", "count": len(np.load(digits)["labels"]), "filter": "none"},
            "photographs": {"method": "confidence", "balance": "class", "count": 5000},
        },
        "distill": {
            "labels": {**shared, **AS_THEY_ARE, "samples": ["digits"], "teacher": f"trees.labels:file={digits}"},
            "teacher": {**shared, **AS_THEY_ARE, "samples": ["digits"]},
            "photographs": {**shared, **SHIFTED, "samples": ["photographs"]},
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


def measure(out, seeds=SEEDS, steps=STEPS, images=IMAGES):
    """Train, count, and write the figures. Returns the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    prepare(out)
    file = out / "knowledge.toml"
    file.write_text(tomli_w.dumps(tables(out, seeds, steps)), encoding="utf-8")
    if status := cli.main(["run", str(file)]):
        return status
    place = resolve_place("auto", "fp32")
    with np.load(out / "heldout.npz") as heldout:
        rows = np.linspace(0, len(heldout["images"]) - 1, images).round().astype(int)
        pixels = heldout["images"][rows]
    masks = pixels[..., 0] >= INK
    load = partial(load_trained, normalize=demo.NORMALIZE, image_size=demo.SIDE)
    teacher = Classifier(load(f"{demo.TEACHER}@{out / 'teacher.safetensors'}"), place)
    result = {ITSELF: counted(knowledge({ITSELF: teacher}, {}, pixels, masks), ITSELF)}
    curves = {}
    for name in ROWS:
        result[name] = []
        for seed in seeds:
            run = run_of(out, name, seed)
            found = knowledge({name: Classifier(load(str(run)), place)}, {name: run}, pixels, masks)
            top1 = json.loads((run / "result.json").read_text())["top1"]
            result[name].append({"seed": seed, "top1": top1, **counted(found, name)})
            curves.setdefault(name, []).append(curve(found.learning[name]))
    about = {"command": "python benchmarks/quality/knowledge.py OUT_DIR", "date": str(date.today())}
    about |= {**machine(torch.device("cpu")), "images": images, "moments": MOMENTS, "steps": steps}
    write_json(out / "knowledge.json", {**about, "networks": result, "curves": curves})
    page(out / "knowledge.html", result, curves)
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


def page(path, result, curves):
    """Write the page with three charts."""
    parts = []
    for heading, names in HYPOTHESES.items():
        charts = []
        for name in names:
            values = {words: found for row, words in ROWS.items() if (found := known(result[row], name))}
            charts.append(figure(f"{name}, a dot a seed", strips(values, result[ITSELF].get(name), "{:.3g}".format)))
        parts.append(section(heading, *charts))
    means = {
        row: [tuple(map(fmean, zip(*at, strict=True))) for at in zip(*of, strict=True)] for row, of in curves.items()
    }
    drawn = lines("Concepts over weight distance", "Means over seeds", means, {row: k for k, row in enumerate(means)})
    note = "Visual concepts of held-out digits. Broken lines: the teacher."
    write_page(
        path,
        "Quantified knowledge on the digits",
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
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(measure(Path(sys.argv[1])))
