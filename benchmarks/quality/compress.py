"""Prune, distil, quantize: size, multiplications, milliseconds and accuracy, beside networks designed small.

    python benchmarks/quality/compress.py digits OUT_DIR     scikit-learn's digits, three seeds: minutes
    python benchmarks/quality/compress.py cifar10 OUT_DIR    needs DFKD_DATA and DFKD_TEACHERS: an hour on a core

The script writes a pipeline and runs it by `dfkd run`, so it resumes after an interruption. OUT_DIR/compress.csv has a
line per row, OUT_DIR/measured.json the command and the machine. The tables in docs/teaching.md are made from copies of
both, results/compress-SETTING.csv and .json. Milliseconds are for one image in onnxruntime on one thread, the
median of 200. Bytes are the size of the .onnx file.
"""

import csv
import os
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import digits
import onnxruntime
import tomli_w
import torch
from losses import SETTINGS as NETWORKS

from dfkd.app import cli, demo
from dfkd.config.stages.shared import Input
from dfkd.formats.run_records import Result, read_result
from dfkd.models.cost import multiplications
from dfkd.models.load import load_model
from dfkd.system.device import machine, resolve_place
from dfkd.system.files import replacing, write_json

HEAD = ("row", "parameters", "multiplications", "bytes", "milliseconds", "top1", "deviation")
TIMED = 200


@dataclass(frozen=True)
class Setting:
    """Networks, images and lengths of one table."""

    defaults: dict[str, Any]
    """Options of all rows."""
    select: dict[str, Any]
    """Options of the selection."""
    by_hand: dict[int, str]
    """Student that is small by hand, by the divisor of the teacher's multiplications."""
    seeds: tuple[int, ...]
    steps: int
    fine: int
    """Steps of a student in int8, which begins with the weights of another row."""


SETTINGS = {
    "digits": Setting(
        {"count": digits.PATCHES // 4},
        {"method": "confidence", "balance": "class"},
        {4: "cifar_resnet:depth=8,width=8", 16: "cifar_resnet:depth=8,width=4"},
        seeds=(0, 1, 2),
        steps=300,
        fine=100,
    ),
    "cifar10": Setting(
        {name: NETWORKS["cifar10"][name] for name in ("teacher", "normalize", "pool", "count", "test")},
        {},
        {4: "cifar_resnet:depth=20,width=16", 16: "cifar_resnet:depth=20,width=8"},
        seeds=(0,),
        steps=1000,
        fine=250,
    ),
}


def tables(setting, out):
    """Return the pipeline: the pruned teacher, the small networks, and each of them in int8."""
    defaults = (demo.options(out) if setting is SETTINGS["digits"] else {}) | setting.defaults
    whole = {}
    for divisor, small in setting.by_hand.items():
        whole[f"pruned-{divisor}"] = {"student": defaults["teacher"], "prune": 1 / divisor}
        whole[f"by-hand-{divisor}"] = {"student": small}
    rows = {name: options | {"steps": setting.steps} for name, options in whole.items()}
    rows |= {f"{name}-int8": {"student": f"run:{name}", "quantize": "int8", "steps": setting.fine} for name in whole}
    return {
        "out": str(out),
        "seeds": list(setting.seeds),
        "defaults": defaults,
        "select": {"chosen": setting.select},
        "distill": {name: {"samples": ["chosen"], **options} for name, options in rows.items()},
    }


def milliseconds(file):
    """Return the median milliseconds for one image, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    image = torch.randn(1, *given.shape[1:], generator=torch.Generator().manual_seed(0)).numpy()
    seconds = []
    for _ in range(TIMED + 20):
        began = time.perf_counter()
        session.run(None, {given.name: image})
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[20:])


def line(name, model, file, accuracies):
    """Return a row of the result file."""
    example = torch.zeros(1, model.channels, *[model.image_size] * 2)
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return [
        name,
        model.parameter_count(),
        multiplications(model.module, example),
        file.stat().st_size,
        f"{milliseconds(file):.4f}",
        f"{100 * statistics.fmean(accuracies):.2f}",
        f"{100 * deviation:.2f}",
    ]


def export(model, options, name, out, seed):
    """Write a model as OUT/NAME.onnx, in int8 if the row is. Returns the file."""
    file = out / f"{name}.onnx"
    kind = "int8" if name.endswith("int8") else "float32"
    samples = out / "samples" / f"chosen-seed{seed}"
    given = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    more = ("--dtype", kind, "--samples", str(samples), "--out", str(file))
    if cli.main(["export", "--model", model, *given, *more]):
        sys.exit(2)
    return file


def results(out, pipeline):
    """Return a line for the teacher and for every row. All but the accuracy is of the first seed."""
    rows, seeds, options = list(pipeline["distill"]), pipeline["seeds"], pipeline["defaults"]
    of_row = {name: [out / "runs" / f"{name}-seed{seed}" for seed in seeds] for name in rows}
    models = {name: (str(runs[0]), {}) for name, runs in of_row.items()}
    shape = {name: options[name] for name in ("normalize", "image_size") if name in options}
    models = {"teacher": (os.path.expandvars(options["teacher"]), shape)} | models
    accuracies = {name: [read_result(run, Result).top1 for run in runs] for name, runs in of_row.items()}
    accuracies["teacher"] = [read_result(of_row[rows[0]][0], Result).teacher_top1]
    return [
        line(name, load_model(text, Input(**given)), export(text, given, name, out, seeds[0]), accuracies[name])
        for name, (text, given) in models.items()
    ]


def measure(name, out):
    """Run the pipeline of a setting and write the table. Returns the exit status of the command."""
    out.mkdir(parents=True, exist_ok=True)
    if name == "digits":
        digits.prepare(out)
    file, pipeline = out / "compress.toml", tables(SETTINGS[name], out)
    file.write_text(tomli_w.dumps(pipeline), encoding="utf-8")
    status = cli.main(["run", str(file)])
    if status == 0:
        lines = results(out, pipeline)
        with replacing(out / "compress.csv") as partial, partial.open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened, lineterminator="\n").writerows([HEAD, *lines])
        place = resolve_place("auto", "auto")
        about = {"command": f"python benchmarks/quality/compress.py {name} OUT_DIR", "date": str(date.today())}
        write_json(out / "measured.json", about | machine(place.device) | place.describe())
    return status


def table(file):
    """Return the result file as Markdown."""
    with file.open(encoding="utf-8", newline="") as opened:
        lines = list(csv.DictReader(opened))
    rows = [
        "| row | parameters | multiplications | bytes | ms | top-1 % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in lines:
        top1 = one["top1"] + (f" ± {one['deviation']}" if float(one["deviation"]) else "")
        counts = " | ".join(f"{int(one[name]):,}" for name in ("parameters", "multiplications", "bytes"))
        rows.append(f"| {one['row']} | {counts} | {float(one['milliseconds']):.3f} | {top1} |")
    return "\n".join(rows)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SETTINGS:
        sys.exit(__doc__)
    sys.exit(measure(sys.argv[1], Path(sys.argv[2])))
