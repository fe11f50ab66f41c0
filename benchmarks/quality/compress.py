"""Prune, distil, quantize: size, multiplications, milliseconds and accuracy, beside networks designed small.

    python benchmarks/quality/compress.py OUT_DIR

The data are scikit-learn's digits, and the teacher is that of `dfkd demo`. The script writes a pipeline and runs it by
`dfkd run`, so it resumes after an interruption. OUT_DIR/compress.csv has a line per row, OUT_DIR/measured.json the
machine. The table in docs/teaching.md is made from copies of both, compress-digits.csv and .json in this folder.
Milliseconds are for one image in onnxruntime on one thread, the median of 200. Bytes are the size of the .onnx file.
"""

import csv
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import digits
import onnxruntime
import tomli_w
import torch

from dfkd.app import cli, demo
from dfkd.formats.run_records import Result, read_result
from dfkd.models.cost import multiplications
from dfkd.models.load import load_model
from dfkd.system.device import machine, resolve_place
from dfkd.system.files import replacing, write_json

SEEDS = [0, 1, 2]
STEPS, FINE = 300, 100
HEAD = ("row", "parameters", "multiplications", "bytes", "milliseconds", "top1", "deviation")
TIMED = 200


def tables(out, seeds=SEEDS, steps=STEPS, fine=FINE):
    """Return the pipeline: the pruned teacher, the small networks, and each of them in int8."""
    teacher = f"{demo.TEACHER}@{out / 'teacher.safetensors'}"
    whole = {
        "pruned-4": {"student": teacher, "prune": 0.25},
        "by-hand-4": {"student": "cifar_resnet:depth=8,width=8"},
        "pruned-16": {"student": teacher, "prune": 0.0625},
        "by-hand-16": {"student": "cifar_resnet:depth=8,width=4"},
    }
    rows = {name: options | {"steps": steps} for name, options in whole.items()}
    rows |= {f"{name}-int8": {"student": f"run:{name}", "quantize": "int8", "steps": fine} for name in whole}
    return {
        "out": str(out),
        "seeds": list(seeds),
        "defaults": {**demo.options(out), "count": digits.PATCHES // 4},
        "select": {"confident": {"method": "confidence", "balance": "class"}},
        "distill": {name: {"samples": ["confident"], **options} for name, options in rows.items()},
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


def results(out, rows, seeds):
    """Return a line for the teacher and for every row. All but the accuracy is of the first seed."""
    found = []
    samples = out / "samples" / f"confident-seed{seeds[0]}"
    for name in ["teacher", *rows]:
        runs = [out / "runs" / f"{name}-seed{seed}" for seed in seeds]
        text = f"{demo.TEACHER}@{out / 'teacher.safetensors'}" if name == "teacher" else str(runs[0])
        file = out / f"{name}.onnx"
        kind = "int8" if name.endswith("int8") else "float32"
        given = ("--normalize", demo.NORMALIZE, "--image-size", str(demo.SIDE)) if name == "teacher" else ()
        more = ("--dtype", kind, "--samples", str(samples), "--out", str(file))
        if cli.main(["export", "--model", text, *given, *more]):
            sys.exit(2)
        model = load_model(text, image_size=demo.SIDE)
        of_teacher = out / "runs" / f"{next(iter(rows))}-seed{seeds[0]}"
        taken = [read_result(run, Result) for run in ([of_teacher] if name == "teacher" else runs)]
        found.append(line(name, model, file, [r.teacher_top1 if name == "teacher" else r.top1 for r in taken]))
    return found


def measure(out, seeds=SEEDS, steps=STEPS, fine=FINE):
    """Run the pipeline and write the table. Returns the exit status of the command."""
    out.mkdir(parents=True, exist_ok=True)
    digits.prepare(out)
    file, pipeline = out / "compress.toml", tables(out, seeds, steps, fine)
    file.write_text(tomli_w.dumps(pipeline), encoding="utf-8")
    status = cli.main(["run", str(file)])
    if status == 0:
        lines = results(out, list(pipeline["distill"]), seeds)
        with replacing(out / "compress.csv") as partial, partial.open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened, lineterminator="\n").writerows([HEAD, *lines])
        place = resolve_place("auto", "auto")
        about = {"command": "benchmarks/quality/compress.py", "date": str(date.today())}
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
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(measure(Path(sys.argv[1])))
