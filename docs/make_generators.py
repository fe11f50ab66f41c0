"""docs/generators.md from the methods' docstrings and the benchmark's result files.

python docs/make_generators.py [FILE]       default: docs/generators.md beside this file
"""

import inspect
import sys
from pathlib import Path

from make_losses import HERE, QUALITY, about, machine_text, rows_of

from dfkd import generators
from dfkd.report.table import with_deviation

SETTINGS = {
    "digits": "digits, `dfkd demo`'s teacher and student",
    "cifar10": "CIFAR-10, ResNet-20 of width 32 teaches one of width 16",
}
FILES = {"digits": ["generators-digits"], "cifar10": ["generators-cifar10", "generators-cifar10-dafl"]}
"""The result files of a setting; seconds of different files are of different machines."""
POOL_RUNS = [
    *(("equal-time", "random-kd-1600"), ("cifar10-2000-steps", "random-kd")),
    ("steps-4000-intel", "random-kd-4000"),
]
"""Random images of the pool with `kd`, at other numbers of steps: what a generator's time would have bought."""
INTRO = """# Generators

Written by `python docs/make_generators.py` from the docstrings and the result files; edit those.

Without a pool, images are made from the teacher.

    dfkd generate --teacher TEACHER --method dafl --out made --count 10000     # a folder like any selection
    dfkd distill  --teacher TEACHER --student STUDENT --source dfad --out run  # or generator and student together

`generate` writes a selection, for `distill --samples made` and `inspect made`. `select --pool made` scores its images
and selects among them.

Some methods need only the teacher. Others also look for images on which student and teacher differ. These train along
with the student (`distill --source`), or are given a trained one (`generate --student RUN`).

`NAME:key=value,...` sets a method's options. Your own class is named with dots ([own.md](own.md#a-generator)).

## A pool and a generator together

    dfkd distill ... --samples selected made --weights 3 1          # shares of every batch
    dfkd distill ... --samples selected --source dafl --weights 3 1 # the generator trains along with the student
    dfkd generate ... --method fastdfkd --fill selected --out more  # images of the classes that `selected` lacks

`--fill` counts the selection's images by the teacher's prediction. It makes as many images as each class needs to reach
the mean of all classes. With `--count N` it adds N images to the classes that have fewest. Only images that the teacher
assigns to such a class are kept. A warning names the classes that still lack images. Methods with wanted or drawn
classes y in their formula are best for this. With other methods most images are discarded.

## When images go bad

`metrics.jsonl` has each term of the generator's loss. Every 50 steps it also has three measures of 64 images:

- `generated_classes` is the effective number of classes that the teacher predicts for them.
- `generated_distance` is the root mean square difference of two images, with pixels from 0 to 1.
- `statistics_distance` is the distance to the means and variances of the teacher's BatchNorm layers. It should fall.

A warning says when a batch has hardly more than one class, or images that look the same. If a term or a weight is no
longer finite, the command stops and names the step and the term. The last checkpoint is kept.

**Cost.** Generated images cost teacher forward passes and generator steps. `result.json` of every run that learns from
them includes this cost. After `select --pool made` it is not included. `seconds` are those of the run alone.

**State.** A bank of images or a memory of a method is part of the run's checkpoint. A run resumes exactly where it
stopped.

## What they gave here

In every row, the student is trained with the loss `kd` for the same number of steps. The rows differ in the origin of
the images. `random` has random images of the pool, `untrained` those of a generator that is not trained. Seconds
include the generator's work; other work ran at the same time. Networks of generators have `width=32` here. A figure
without a deviation is of one seed. A dash means: not run.

Results depend on the teacher. `dafl:width=16` gave 95.8 % with the teacher of the digits' column (one seed). It gave
79.0 ± 5.9 % with another training of the same network (three seeds; benchmarks/quality/LOG.md).

{measured}

{table}

{equal}

If the teacher has no BatchNorm layers, {without} work. The others need their statistics and are refused.

`dfkd distill --preset dfad ...` has the paper's own options for student and generator. Each method except
`adaptivedeepinversion` has such a preset. None was run here at its full length.
"""


def classes():
    """The methods by the names that users write."""
    return {name.lower(): getattr(generators, name) for name in sorted(generators.__all__, key=str.lower)}


def needs(kind):
    """What a method learns from."""
    student = "the student" if kind.needs_student else "the student if there is one"
    needs = [student] * kind.uses_student + ["real images"] * kind.needs_real
    return ", ".join(["the teacher", *needs])


def table():
    """A row for every method, and the pool's."""
    lines = ["| source | learns from | " + " | ".join(f"{s} % | seconds | generator steps" for s in SETTINGS) + " |"]
    lines.append("| --- | --- |" + " ---: | ---: | ---: |" * len(SETTINGS))
    found = {s: {row.name: row for file in FILES[s] for row in rows_if_any(file)} for s in SETTINGS}
    controls = {"random": "the pool", "untrained": "nothing: a generator's first weights"}
    for name, kind in [*dict.fromkeys(controls).items(), *classes().items()]:
        cells = [f"[`{name}`](#{name})", needs(kind)] if kind else [f"`{name}`", controls[name]]
        for rows in found.values():
            row = rows.get(name)
            cells += ["-"] * 3
            if row is not None:
                steps = row.mean("generator_steps") or 0
                cells[-3:] = [with_deviation(row, "top1"), f"{row.mean('seconds'):,.0f}", f"{steps:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rows_if_any(file):
    """The rows of a result file; none where it was not measured."""
    return rows_of(file) if (QUALITY / f"{file}.csv").exists() else []


def measured():
    """What stands behind the columns."""
    lines = []
    for setting, words in SETTINGS.items():
        for file in FILES[setting]:
            rows = rows_if_any(file)
            if not rows:
                lines.append(f"- {words}: not measured yet (`python benchmarks/quality/generators.py {setting} OUT`).")
                continue
            on, first = about(file), rows[0].runs[0].result
            seeds = max(len(row.runs) for row in rows)
            many = "one seed" if seeds == 1 else f"{seeds} seeds"
            only = "" if file == FILES[setting][0] else f", {', '.join(f'`{row.name}`' for row in rows)}"
            lines.append(
                f"- {words}{only}: top-1 after {first.steps:,} steps, {many}. The teacher has "
                f"{100 * (first.teacher_top1 or 0):.2f} (`python {on['command']} OUT`; {machine_text(on)})."
            )
    return "\n".join(lines)


def equal_time():
    """What the pool gives in the time of each generator on CIFAR-10."""
    pool = sorted(
        (row.mean("steps"), with_deviation(row, "top1"), row.mean("seconds"), about(file)["hardware"])
        for file, name in POOL_RUNS
        for row in rows_if_any(file)
        if row.name == name
    )
    lines = ["Equal time on CIFAR-10; steps on random images of the pool are timed on the same machine:", ""]
    for file in FILES["cifar10"]:
        rows, hardware = rows_if_any(file), about(file)["hardware"]
        own = [(row.mean("seconds"), row.mean("steps")) for row in rows if row.name == "random"]
        same = own or [(seconds, steps) for steps, _, seconds, where in pool if where == hardware]
        rate = min(seconds / steps for seconds, steps in same)  # the run beside which the least other work was done
        for row in rows:
            if row.name != "random":
                around = [f"{steps:,.0f} steps give {top1}" for steps, top1, _, _ in pool]
                lines.append(
                    f"- `{row.name}`: {with_deviation(row, 'top1')} in {row.mean('seconds'):,.0f} s, the time of "
                    f"{row.mean('seconds') / rate:,.0f} such steps ({hardware}). {', '.join(around)}."
                )
    return "\n".join(lines)


def section(name, kind):
    """A method's docstring with its options."""
    parameters = list(inspect.signature(kind).parameters.values())[1:]
    options = ",".join(f"{p.name}={p.default}" for p in parameters)
    head = f"Defaults: `{name}:{options}`. Paper: {kind.paper}."
    return f"## {name}\n\n{head}\n\n{inspect.getdoc(kind)}\n"


def page():
    """The whole page."""
    found = classes()
    without = [f"`{name}`" for name, kind in found.items() if not kind.needs_statistics]
    intro = INTRO.format(measured=measured(), table=table(), equal=equal_time(), without=", ".join(without))
    return "\n".join([intro, *(section(name, kind) for name, kind in found.items())])


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "generators.md"
    target.write_text(page(), encoding="utf-8")
