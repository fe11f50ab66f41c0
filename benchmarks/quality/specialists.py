"""Gain of specialists over the same student trained further: docs/teaching.md.

    python benchmarks/quality/specialists.py digits OUT_DIR     three seeds of the demo's digits: minutes
    python benchmarks/quality/specialists.py tiny100 OUT_DIR    100 classes of Tiny-ImageNet (tiny100.py writes them)

`specialists` and the rows `further` continue from `generalist`, for as many steps or about as much time.
OUT_DIR/report.csv has a row per run, for keep.py. OUT_DIR/added.csv has the accuracy with 0, 1, 2, ... voting
specialists, for all images and for those of the specialists' classes. OUT_DIR/added.svg shows it. The script resumes
after an interruption.
"""

import csv
import os
import sys
from pathlib import Path

import numpy as np
import torch
from losses import SETTINGS, measure

from dfkd.models.load import load_model
from dfkd.system.files import replacing

KINDS = {
    "digits": (3, 100, {"loss": ["kd"], "steps": 400}),
    "tiny100": (10, 400, {"loss": ["kd", "ofd"], "init": "teacher", "steps": 1000}),
}
"""For each setting: number of specialists, steps of the rows that continue, and options of the generalist."""
FINE = {"student": "run:generalist", "optimizer": "adamw", "lr": 0.0005, "batchnorm": "kept"}
HEAD = ("seed", "voting", "top1", "of_their_classes")


def rows(count, steps, generalist):
    """Return the options of every row."""
    further = {**FINE, "loss": ["kd"]}  # new layers of other losses would first undo what the generalist knows
    return {
        "generalist": generalist,
        "specialists": {**FINE, "specialists": count, "steps": steps},
        "further-equal-steps": {**further, "steps": steps},
        "further-equal-time": {**further, "steps": (count + 1) * steps},
    }


@torch.no_grad()
def added(run, test):
    """Return accuracies by the number of voting specialists, for all test images and for the specialists' classes."""
    model, data = load_model(str(run)), np.load(test)
    pixels, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])
    special, said = model.module.special.classes, []
    for some in pixels.split(256):
        views = model.preprocess(some)
        said.append(torch.stack([network(views).argmax(dim=1) for network in (model.module.generalist, model.module)]))
    general, vote = torch.cat(said, dim=1)
    covered, found = special.any(dim=0)[labels], []
    for voting in range(len(special) + 1):
        heard = special[:voting].any(dim=0)[general]  # at most one specialist votes on an image
        right = (torch.where(heard, vote, general) == labels).float()
        found.append((voting, right.mean().item(), right[covered].mean().item()))
    return found


def picture(lines):
    """Return an SVG of the means over seeds: all images, and those of the specialists' classes if they are fewer."""
    counts = sorted({line[1] for line in lines})
    of_seed = {seed: [line for line in lines if line[0] == seed] for seed, *_ in lines}
    # a seed with fewer specialists keeps the value of all its specialists
    curves = [
        [np.mean([100 * own[min(n, len(own) - 1)][k] for own in of_seed.values()]) for n in counts] for k in (2, 3)
    ]
    if np.array_equal(*curves):
        curves.pop()
    low, high = min(map(min, curves)) - 0.5, max(map(max, curves)) + 0.5

    def place(n, value):
        return 70 + 520 * n / max(counts), 230 - 190 * (value - low) / (high - low)

    marks = []
    lowest = min(curves, key=np.mean)
    for name, style, values in zip(("all classes", "their classes"), ("#5b7ea6", "#b08a3c"), curves, strict=False):
        below = 20 if values is lowest and len(curves) > 1 else -9
        dots = [place(n, value) for n, value in zip(counts, values, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        marks.append(f'<polyline points="{path}" fill="none" stroke="{style}" stroke-width="2.5"/>')
        marks += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{style}"/>' for x, y in dots]
        marks += [
            f'<text x="{x:.1f}" y="{y + below:.1f}" text-anchor="middle">{value:.1f}</text>'
            for (x, y), value in zip(dots, values, strict=True)
        ]
        marks.append(f'<text x="{dots[-1][0] + 20:.1f}" y="{dots[-1][1] + below:.1f}" fill="{style}">{name}</text>')
    marks += [f'<text x="{place(n, low)[0]:.1f}" y="252" text-anchor="middle">{n}</text>' for n in counts]
    title = "top-1 % by the number of specialists that vote, mean over the seeds"
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 270" role="img" font-family="system-ui, sans-serif"'
    )
    words = f'<title>{title}</title><rect width="720" height="270" fill="#ffffff"/><text x="20" y="22">{title}</text>'
    return f'{head} font-size="15" fill="#3a4a5c">{words}{"".join(marks)}</svg>\n'


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in KINDS:
        sys.exit(__doc__)
    setting, out = sys.argv[1], Path(sys.argv[2])
    status = measure("specialists", setting, out, rows(*KINDS[setting]))
    if status == 0:
        values, lines = SETTINGS[setting], []
        for seed in values["seeds"]:
            test = os.path.expandvars(values["test"].format(out=out))
            lines += [(seed, *line) for line in added(out / "runs" / f"specialists-seed{seed}", test)]
        with replacing(out / "added.csv") as partial, partial.open("w", encoding="utf-8", newline="") as opened:
            shown = [(seed, voting, f"{top1:.4f}", f"{own:.4f}") for seed, voting, top1, own in lines]
            csv.writer(opened, lineterminator="\n").writerows([HEAD, *shown])
        with replacing(out / "added.svg") as partial:
            partial.write_text(picture(lines), encoding="utf-8")
    sys.exit(status)


if __name__ == "__main__":
    main()
