"""docs/losses.md from the losses' docstrings and the benchmarks' result files.

python docs/make_losses.py [FILE]       default: docs/losses.md beside this file
"""

import inspect
import json
import sys
from pathlib import Path

from dfkd.distill import losses
from dfkd.report.table import read_csv, with_deviation

HERE = Path(__file__).resolve().parent
SETTINGS = {
    "digits": "digits, `dfkd demo`'s teacher and student on random patches of photographs",
    "cifar10": "CIFAR-10, ResNet-20 of width 32 teaches one of width 16 on random Tiny-ImageNet photographs",
}
QUALITY, SPEED = (HERE.parent / "benchmarks" / kind / "results" for kind in ("quality", "speed"))
FAMILIES = {
    "outputs": "Losses on the outputs",
    "boundaries": "Losses near the decision boundaries",
    "features": "Losses on features",
    "relations": "Losses on relations within a batch",
    "students": "Losses on other students, and on the student itself",
}
"""The headings of the families that losses name."""
INTRO = """# Losses

Written by `python docs/make_losses.py` from the docstrings and the result files; edit those.

`dfkd distill --loss NAME[:WEIGHT,key=value,...] ...` sums the named losses: `--loss kd at rkd:10,angle=0`. Where no
WEIGHT is given, a loss has its default weight. A loss may have layers or memories of its own, such as projections and
discriminators. They train with the student and are saved in the checkpoint. They are not part of the student.
[own.md](own.md#a-loss) shows how to write a loss.

## How to choose

- Begin with the default. It is `kd ofd` if both networks have feature maps of several resolutions. On CIFAR-10 and on
  photographs it was far ahead of `kd` alone, for a third more time per step. [reference.md](reference.md#distilling)
  says when the default is `kd` alone.
- `kd` reads only the outputs and works with any pair of networks, also with a `.pt2` teacher.
- A loss on features needs feature maps, or a linear last layer. `dfkd` finds them by running the networks. It pairs the
  stages of both networks from the deepest on, one for each resolution. It pools the larger map, and learns a projection
  if widths differ. `--teacher-taps stage1=layer2 stage2=layer3 --student-taps ...` names the layers by hand.
- The papers chose their weights on labeled images of the teacher's own domain, for hundreds of epochs. For other images
  and short runs a smaller weight can be better. Compare the column of the loss in `metrics.jsonl` with that of `kd`.
- Some papers increase the weight slowly, or use a learning rate of 0.05. `dkd` fails at SGD's rate of 0.4 here; use
  `dkd:0.2` or `--lr 0.05`.
- Some papers use their loss before the distillation itself (`fitnet`, `ab`, `fsp`). Such a loss can have its own run:
  `dfkd distill --loss ab --out first`, then `dfkd distill --student first --loss kd --out second`.
- `--class-dropping` changes `kd` and no other loss.

## What they gave here

A loss that trains the student's outputs is used alone. Every other loss, and `noise` and `cgan`, is added to `kd`. All
rows have default weights, options and learning rate, except `ft:paraphraser=100`, whose default preparation is longer
than these runs. Students begin with random weights, without random resized crops (`--init none --crop-area 1`). With
one seed, differences of a point are noise. A dash means: not run in this setting.
[teaching.md](teaching.md#several-students) has results of the losses on students.

{measured}

{table}
"""


def rows_of(name):
    """The rows of a result file of the benchmarks of quality."""
    return read_csv((QUALITY / f"{name}.csv").read_text(encoding="utf-8"))


def about(name):
    """What they were measured on."""
    return json.loads((QUALITY / f"{name}.json").read_text(encoding="utf-8"))


def of_family(classes, family):
    """The losses of a family by name, the oldest first."""
    found = [(kind.paper.year, name) for name, kind in classes.items() if kind.family == family]
    return [name for _, name in sorted(found)]


def reads(kind):
    """What a loss needs beside the logits."""
    loss = kind()
    needs = [f"`{tap}`" for tap in loss.taps]
    needs += ["the networks"] * loss.uses_networks + ["other students"] * loss.reads_peers
    return ", ".join(needs) or "the logits"


def table(classes):
    """A table for each family."""
    speed = json.loads((SPEED / "losses.json").read_text(encoding="utf-8"))["losses"]
    columns = [{row.name: with_deviation(row, "top1") for row in rows_of(f"losses-{name}")} for name in SETTINGS]
    lines = []
    for family, heading in FAMILIES.items():
        lines += [f"### {heading}", "", "| loss | matches | reads | own parameters | step | digits % | CIFAR-10 % |"]
        lines += ["| --- | --- | --- | ---: | ---: | ---: | ---: |"]
        for name in of_family(classes, family):
            kind = classes[name]
            what = inspect.getdoc(kind).splitlines()[0].rstrip(".").replace("|", "\\|")
            cost = speed.get(name)
            costs = (f"{cost['parameters']:,}", f"{cost['ratio']:.2f}") if cost else ("-", "-")
            cells = (f"[`{name}`](#{name})", what, reads(kind), *costs)
            lines.append(f"| {' | '.join([*cells, *(column.get(name, '-') for column in columns)])} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def measured():
    """What stands behind the columns, from the result files."""
    lines = []
    for setting, words in SETTINGS.items():
        on, rows = about(f"losses-{setting}"), rows_of(f"losses-{setting}")
        seeds, first = max(len(row.runs) for row in rows), rows[0].runs[0].result
        many = "one seed" if seeds == 1 else f"{seeds} seeds"
        lines.append(
            f"- {words}: top-1 after {first.steps:,} steps, {many}. The teacher has "
            f"{100 * (first.teacher_top1 or 0):.2f} (`python {on['command']} OUT`; {machine_text(on)})."
        )
    speed = json.loads((SPEED / "losses.json").read_text(encoding="utf-8"))
    lines.append(
        "- step: the time of a step of `kd` with the loss, divided by that of `kd` alone. ResNet-20 of width 32 "
        "teaches one of width 16 on 32 pixels, batch 128. Other work ran beside it: differences of 0.1 are noise. Own "
        f"parameters: those for that pair (`python {speed['command']} OUT`; {machine_text(speed)})."
    )
    return "\n".join(lines)


def machine_text(on):
    """The machine, torch and day of a result file."""
    threads = f"{on['threads']} thread{'s' if on['threads'] > 1 else ''}"
    return f"{on['hardware']}, {threads}, torch {on['torch']}, {on['date']}"


def section(name, kind):
    """A loss's docstring with its options."""
    options = [str(p).split(":")[0] + f"={p.default}" for p in inspect.signature(kind).parameters.values()]
    head = f"Defaults: `--loss {name}:{','.join([f'{kind.weight:g}', *options])}`. Paper: {kind.paper}."
    return f"## {name}\n\n{head}\n\n{inspect.getdoc(kind)}\n"


def page():
    """The whole page."""
    classes = {name.lower(): getattr(losses, name) for name in losses.__all__}
    names = [name for family in FAMILIES for name in of_family(classes, family)]
    parts = [INTRO.format(measured=measured(), table=table(classes)), *(section(name, classes[name]) for name in names)]
    return "\n".join(parts)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "losses.md"
    target.write_text(page(), encoding="utf-8")
