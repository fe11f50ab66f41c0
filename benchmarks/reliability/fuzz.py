"""A coverage-guided fuzzer of all readers of foreign bytes; it needs `pip install '.[fuzz]'` (atheris).

    python -m benchmarks.reliability.fuzz --seconds 600 --out fuzz.json [--target image ...]
    python -m benchmarks.reliability.fuzz --table fuzz.json

results/fuzz.json is the published one.

Every target runs in its own process for its share of the time. An exception that a target does not allow is a finding.
The fuzzer saves one finding per place that raises it, in FINDINGS (`--findings`), and continues. A crash, a hang of 20
s or 3 GB of memory ends the target, and libFuzzer saves the input. The output file has the number of inputs tried.
"""

import argparse
import importlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
INSTRUMENTED = ["dfkd", "PIL", "tarfile", "zipfile", "tomllib"]
READERS = (
    "dfkd.data",
    "dfkd.report.contents",
    "dfkd.models.program",
    "dfkd.models.weights",
    "dfkd.app.pipeline_file",
)
PACKAGES = ("atheris", "numpy", "pillow", "pyarrow", "safetensors", "simplejpeg", "torch")


def fuzz(name: str, corpus: Path, findings: Path, seconds: int, seed: int) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import warnings

    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        for module in READERS:
            importlib.import_module(module)
        from PIL import Image

        import dfkd
        from benchmarks.reliability import seeds, targets

        Image.init()  # imports the modules of all formats
    warnings.simplefilter("ignore")
    silent = lambda line: None  # noqa: E731 -- one line per input would flood the log
    dfkd.system.console.say = dfkd.data.pool.say = dfkd.data.opening.say = dfkd.data.readers.npz.say = silent
    target = targets.TARGETS[name]
    for number, data in enumerate(seeds.SEEDS[name]()):
        (corpus / f"seed-{number}").write_bytes(data)
    known = set()

    def once(data: bytes) -> None:
        try:
            target(data)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__}-{Path(frame.filename).stem}-{frame.lineno}"
            if place not in known:
                known.add(place)
                (findings / f"{name}-{place}.bin").write_bytes(data)
                (findings / f"{name}-{place}.txt").write_text("".join(traceback.format_exception(error))[-4000:])

    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        "-timeout=20",
        "-report_slow_units=20",
        "-rss_limit_mb=3000",
        "-max_len=16384",
    ]
    options += ["-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={findings / name}-", str(corpus)]
    atheris.Setup([sys.argv[0], *options], once)
    atheris.Fuzz()


def run_target(name: str, seconds: int, seed: int, findings: Path) -> dict[str, int | str]:
    """Fuzz one target in a child process. Returns the figures that libFuzzer reports."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as corpus, tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--child", corpus, "--target", name, "--seconds", str(seconds)]
        command += ["--seed", str(seed), "--findings", str(findings)]
        environment = {"TMPDIR": scratch, "OMP_NUM_THREADS": "1", "HOME": scratch, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    executed = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    coverage = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
    if not executed or not coverage:
        (findings / f"{name}-log.txt").write_text(done.stderr[-20_000:])
        counts = re.findall(r"^#(\d+)\s", done.stderr, re.MULTILINE)
        executed = executed or counts[-1:] or ["0"]
        coverage = coverage or [("0", "0")]
    ended = "time" if done.returncode == 0 else f"exit status {done.returncode}"
    return {
        "inputs": int(executed[-1]),
        "places_reached": int(coverage[-1][0]),
        "seconds": round(time.perf_counter() - started),
        "findings": len([p for p in findings.glob(f"{name}-*") if p.suffix != ".txt"]),
        "ended_by": ended,
    }


def table(result: dict[str, Any]) -> str:
    """Return the figures of a run as the table of docs/reliability.md."""
    rows = ["| Target | Inputs tried | Branches reached | Findings |", "| --- | ---: | ---: | ---: |"]
    for name, one in result["targets"].items():
        rows.append(f"| {name} | {one['inputs']:,} | {one['places_reached']:,} | {one['findings']} |")
    rows.append(f"| all, in {result['seconds'] / 60:.0f} minutes | {result['inputs']:,} | | {result['findings']} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="in total, shared evenly by the targets")
    parser.add_argument("--target", action="append", help="only these")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--out", type=Path, help="FILE.json for the figures; a target that is not run keeps its own")
    parser.add_argument("--table", type=Path, help="print the table of docs/reliability.md from such a file, and end")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text(encoding="utf-8"))))
        return
    options.findings.mkdir(parents=True, exist_ok=True)
    findings = options.findings.resolve()
    if options.child:
        fuzz(options.target[0], options.child, findings, options.seconds, options.seed)
        return
    from benchmarks.reliability import targets

    chosen = options.target or list(targets.TARGETS)
    figures = {}
    if options.out and options.out.exists():  # targets that do not run now keep their figures
        old = json.loads(options.out.read_text(encoding="utf-8"))["targets"]
        figures = {name: old[name] for name in targets.TARGETS if name in old}
    for name in chosen:
        figures[name] = run_target(name, max(1, options.seconds // len(chosen)), options.seed, findings)
        print(name, figures[name], flush=True)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    result = {
        "command": f"python -m benchmarks.reliability.fuzz --seconds {options.seconds} --out OUT.json",
        "date": str(date.today()),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "seconds": sum(f["seconds"] for f in figures.values()),
        "inputs": sum(f["inputs"] for f in figures.values()),
        "findings": sum(f["findings"] for f in figures.values()),
        "seed": options.seed,
        "targets": figures,
        "python": platform.python_version(),
        "versions": versions,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
