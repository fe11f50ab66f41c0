"""Which selection method pays on which pool: everything else is as the defaults of `dfkd` have it.

    python benchmarks/quality/methods.py POOL OUT [ROW ...] [--steps N ...] [--seeds S ...] [--no-training]

POOL is heap-20, heap-2, long-tail or adversarial (heaps.py has made them in DFKD_DATA/heaps), photos (the Tiny-ImageNet
photos alone), or digits (the demo's heap, made in OUT). All but digits need DFKD_DATA and DFKD_TEACHERS. Of a pool
10,000 images are selected, of heap-2 and digits 2,000. A ROW is a name of the table `ROWS` below (all methods of
`dfkd`, `clean`, `dfnd` and two more draws of `threshold`), or any METHOD with further options behind it:

    threshold:draw=random+balance=none+gamma=0.3
    my_methods.margin:power=2+deduplicate=0.99

OUT/POOL/methods.csv gets a line for every run, or for a selection that no run has learned from yet:

    top1, agreement   of the student after the last step
    photos            share of the selected images that are photos
    kinds             how many of the selected images are what
    covered           classes of which at least a tenth of an even share is among the selected photos, by the teacher
    effective         exp of the entropy of the selected photos' classes: the number of classes, if they are even
    cost              seconds for 1,000 images of `dfkd select` without a cache and without a filter; the smaller of two
    seconds           of the training

methods.json has the command, the date and the machine. Every line that OUT has is in the table, also from earlier
commands: rows can be measured one by one, an interrupted command goes on, and several can share the work.
--no-training fills all columns but those of the students: some 20 seconds for a row, after one pass of the teacher.
"""

import argparse
import csv
import json
import os
import re
import shlex
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tomli_w

import dfkd
from dfkd.app import cli, demo
from dfkd.app.pipeline_file import read_pipeline
from dfkd.config.stage_table import stage_of
from dfkd.data import open_pool
from dfkd.formats.run_records import RESULT, Result, read_result
from dfkd.select import methods
from dfkd.system.device import machine, resolve_place
from dfkd.system.errors import RequestError
from dfkd.system.files import replacing, write_json, write_text
from dfkd.system.text import aligned

ROWS = {
    "clean": "random",  # of the pool's photos alone: what a perfect selection gives
    **{name: name for name in methods.__all__},
    "dfnd": "confidence",
    "threshold-random": "threshold:draw=random",
    "threshold-entropy": "threshold:draw=entropy",
}
DISTILL = {"dfnd": {"loss": ["kd", "ofd", "noise"]}}
"""Options of a row's student: DFND's noise matrix beside the default losses."""
HEAPS = ("heap-20", "heap-2", "adversarial")
"""Pools of which the photos lie in a file of their own."""
POOLS = (*HEAPS, "long-tail", "photos", "digits")
COUNTS = {"heap-2": 2_000, "digits": demo.SELECTED}
COUNT, STEPS, DIGITS_STEPS = 10_000, (500, 2_000), (150,)
COST_IMAGES = 2_000
COLUMNS = (
    *("pool", "row", "method", "seed", "steps", "top1", "agreement", "photos", "kinds", "covered", "effective"),
    *("cost", "seconds"),
)


def cifar10(pool):
    """The options of all rows, the file of the pool's photos and that of its kinds, where there are any."""
    heaps = f"{os.environ.get('DFKD_DATA', 'data')}/heaps"
    options = {
        "teacher": "cifar_resnet:depth=20,width=32@$DFKD_TEACHERS/cifar10_resnet20_w32_train40k.pt",
        "normalize": "cifar10",
        "image_size": 32,
        "pool": [f"{heaps}/{pool}.npz" if pool != "photos" else "$DFKD_DATA/pool_tiny_imagenet_32.npz"],
        "student": "cifar_resnet:depth=20",
        "test": "$DFKD_DATA/cifar10_heldout10k.npz",
    }
    photos = f"{heaps}/{pool}-photos.npz" if pool in HEAPS else None
    return options, photos, f"{heaps}/{pool}-kinds.npz" if pool != "photos" else None


def digits(out):
    """The same for the demo's heap, which is made in `out`."""
    demo.prepare(out)
    kinds, photos = out / demo.KINDS, out / "photos.npz"
    if not photos.exists():
        with np.load(out / "pool.npz") as pool, np.load(kinds) as of:
            demo.save(photos, lambda: {"images": pool["images"][of["kind"] == 0]})
    return demo.options(out), str(photos), str(kinds)


def parsed(row):
    """A row's name as a folder, and its options of `select`."""
    method, *more = ROWS.get(row, row).split("+")
    pairs = [text.partition("=") for text in more]
    if not all(key and value for key, _, value in pairs):
        raise RequestError(f"row {row!r} is not METHOD+option=value; the options are those of dfkd select")
    name = row if row in ROWS else re.sub(r"[^\w.]+", "-", row)
    return name, {"method": method} | {key.replace("_", "-"): typed(value) for key, _, value in pairs}


def typed(text):
    """A number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def cost(options, select):
    """Seconds for 1,000 images, from nothing to a selection: the teacher's pass and the method."""
    size, (pool,) = options["image_size"], options["pool"]
    images = open_pool([os.path.expandvars(pool)], image_size=size, channels=3 if size == 32 else 1)
    pixels = images.images(np.arange(min(COST_IMAGES, len(images)))).pixels
    teacher = dfkd.Teacher(os.path.expandvars(options["teacher"]), normalize=options["normalize"], image_size=size)
    given = {key.replace("-", "_"): value for key, value in select.items() if key not in ("pool", "count")}
    keywords = given | {"filter": "none"}
    before, found = os.environ.get("DFKD_CACHE"), []
    try:
        for _ in range(2):
            with tempfile.TemporaryDirectory() as cache:
                os.environ["DFKD_CACHE"] = cache
                began = time.perf_counter()
                teacher.select(pixels, count=1, verbose=False, **keywords)
                found.append(time.perf_counter() - began)
    finally:
        os.environ.pop("DFKD_CACHE")
        os.environ.update({"DFKD_CACHE": before} if before is not None else {})
    return 1000 * min(found) / len(pixels)


def chosen(folder, kinds):
    """What a selection holds: the columns that need no student."""
    table = pq.read_table(folder / "scores.parquet", columns=["reason", "prediction"])
    selected = table["reason"].to_numpy() == "selected"
    predictions, names, kind = table["prediction"].to_numpy()[selected], ["photo"], np.zeros(selected.sum(), int)
    if kinds is not None:
        with np.load(kinds) as of:
            names, kind = of["names"].tolist(), of["kind"][selected]
    counts = dict(zip(names, np.bincount(kind, minlength=len(names)).tolist(), strict=True))
    manifest = dfkd.open_selection(folder).manifest
    per_class = np.bincount(predictions[kind == 0], minlength=manifest["classes"])
    share = per_class[per_class > 0] / max(per_class.sum(), 1)
    return {
        "method": manifest["config"]["method"],
        "photos": round(counts["photo"] / len(kind), 4),
        "kinds": " ".join(f"{name}:{count}" for name, count in counts.items() if count),
        "covered": int((per_class >= 0.1 * per_class.sum() / len(per_class)).sum()) if len(share) else 0,
        "effective": round(float(np.exp(-(share * np.log(share)).sum())), 2) if len(share) else 0.0,
    }


def lines(pool, out, kinds, costs):
    """A line for every run in `out`, and for every selection without one."""
    for folder in sorted((out / "samples").glob("*-seed*[0-9]")):
        row, _, seed = folder.name.rpartition("-seed")
        if not (folder / "manifest.json").exists():
            continue
        own = {"pool": pool, "row": row, "seed": int(seed), "cost": costs.get(row, "")}
        own |= chosen(folder, kinds if row != "clean" else None)
        named = re.compile(rf"{re.escape(row)}-\d+-seed{seed}")
        runs = [run for run in (out / "runs").glob(f"{row}-*") if named.fullmatch(run.name) and (run / RESULT).exists()]
        results = [read_result(run, Result) for run in runs]
        for result in sorted(results, key=lambda result: result.steps):
            figures = {name: round(getattr(result, name), 4) for name in ("top1", "agreement", "seconds")}
            yield own | figures | {"steps": result.steps}
        if not results:
            yield own


def write(table, target, command):
    """The table and what it was measured on."""
    with replacing(target) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    place = resolve_place("auto", "auto")
    about = {"command": command, "date": str(date.today()), **machine(place.device), **place.describe()}
    write_json(target.with_suffix(".json"), about)


def summary(table):
    """The means over seeds as text: shorter runs first, of these the better ones."""
    groups = {}
    for line in table:
        groups.setdefault((line.get("steps", 0), line["row"]), []).append(line)

    def mean(of, name):
        return float(np.mean([line.get(name, 0) or 0 for line in of]))

    body = []
    for (steps, row), of in sorted(groups.items(), key=lambda item: (item[0][0], -mean(item[1], "top1"), item[0][1])):
        top1 = f"{100 * mean(of, 'top1'):.2f}" if steps else "-"
        if steps and len(of) > 1:
            top1 += f" ± {100 * np.std([line['top1'] for line in of], ddof=1):.2f}"
        holds = (f"{mean(of, 'photos'):.1%}", f"{mean(of, 'covered'):.1f}", f"{mean(of, 'effective'):.2f}")
        body.append([row, str(steps or "-"), str(len(of)), top1, *holds, f"{mean(of, 'cost'):.2f}"])
    return aligned(["row", "steps", "seeds", "top-1 %", "photos", "covered", "effective", "cost"], body)


def run(command, pool, out, rows, steps, seeds, training):
    """Run the rows that are not complete, as a pipeline, and write the table; the exit status."""
    options, photos, kinds = digits(out / "data") if pool == "digits" else cifar10(pool)
    named = dict(parsed(row) for row in rows)
    if "clean" in named:
        if photos is None:
            raise RequestError(f"{pool} is photos alone: it has no row 'clean'")
        named["clean"]["pool"] = [photos]
    tables = {
        "out": str(out),
        "seeds": seeds,
        "defaults": options | {"count": COUNTS.get(pool, COUNT)},
        "select": named,
        "distill": {
            f"{name}-{number}": {"samples": [name], "steps": number} | DISTILL.get(name, {})
            for name in named
            for number in steps
        },
    }
    file = out / "methods.toml"
    write_text(file, tomli_w.dumps(tables))
    status = cli.main(["run", str(file)]) if training else selected(file)
    measured = out / "cost.json"
    costs = json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else {}
    for name, select in named.items():
        if name not in costs and any(out.glob(f"samples/{name}-seed*/manifest.json")):
            costs[name] = costs["random"] if name == "clean" and "random" in costs else round(cost(options, select), 3)
            write_json(measured, costs)
    table = [*lines(pool, out, kinds and Path(os.path.expandvars(kinds)), costs)]
    write(table, out / "methods.csv", command)
    print(f"{summary(table)}\n\nwrote {out / 'methods.csv'}")
    return status


def selected(file):
    """Make the selections of a pipeline and nothing else; 2 where one was refused."""
    status = 0
    for selection in read_pipeline(file).selections:
        try:
            stage_of(selection).run(selection)
        except RequestError as error:
            print(f"methods.py: {Path(selection.out).name}: {error}", file=sys.stderr)
            status = 2
    return status


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", metavar="POOL", choices=POOLS)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("rows", metavar="ROW", nargs="*", help=f"one of {', '.join(ROWS)}, or METHOD+option=value")
    parser.add_argument("--steps", type=int, nargs="+", help="of the students (default: 500 2000; digits: 150)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--no-training", action="store_true", help="only select")
    args = parser.parse_args()
    rows = args.rows or [row for row in ROWS if row != "clean" or args.pool in (*HEAPS, "digits")]
    steps = args.steps or (DIGITS_STEPS if args.pool == "digits" else STEPS)
    try:
        words = ["OUT" if word == str(args.out) else word for word in sys.argv[1:]]
        command = f"python benchmarks/quality/methods.py {shlex.join(words)}"
        sys.exit(run(command, args.pool, args.out / args.pool, rows, steps, args.seeds, not args.no_training))
    except RequestError as error:
        sys.exit(f"methods.py: {error}")


if __name__ == "__main__":
    main()
