"""Compare the bytes that two revisions compute: `make same BASE=REVISION`.

Both revisions run the same requests on the digits: every selection method, generator, loss and training option for a
few steps, and a pipeline. The script prints what differs and exits with status 1 if anything does. Run it before and
after a change that must not change results: a move of code, a refactoring, another version of a library.

Not compared: reports, and the measured seconds and memory of results and metrics.
"""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TEACHER = "cifar_resnet:depth=8,width=16,num_classes=10,in_channels=1@teacher.safetensors"
COMMON = ["--normalize", "0.5/0.5", "--image-size", "16", "--device", "cpu", "--precision", "fp32"]
SELECTIONS = {
    "threshold": [],
    "random": ["--method", "random"],
    "confidence": ["--method", "confidence"],
    "entropy": ["--method", "entropy"],
    "gamma": ["--gamma", "0.4", "--balance", "none", "--class-dropping", "0.1"],
    "cluster": ["--balance", "cluster", "--deduplicate", "0.99"],
    "fitted": ["--filter", "fitted"],
    "blurred": ["--filter", "blur:sigma=0.5", "--seed", "1"],
}
OPTIONS = {
    "default": [],
    "random-weights": ["--init", "none"],
    "paper": ["--preset", "paper"],
    "mixed": ["--loss", "kd", "--source", "dafl:width=8"],
    "averaged": ["--ema", "0.9", "--reestimate", "2", "--optimizer", "adamw"],
    "views": ["--teacher-views", "2"],
    "mixup": ["--mixup", "1", "--cutmix", "1", "--crop-area", "0.4"],
    "classes": ["--batches", "classes:each=4"],
    "superclasses": ["--batches", "superclasses:count=4"],
    "hardest": ["--batches", "hardest:share=0.5", "--steps", "40"],
}
NEEDS = {"ft": "ft:paraphraser=2", "kd": "kd:temperature=2"}
VARIES = {"seconds", "peak_memory_bytes", "images_per_second", "checksum", "metrics.jsonl"}
REPORTS = (".html", ".csv")
PIPELINE = f"""
out = "pipeline"
seeds = [0, 1]
[defaults]
teacher = "{TEACHER}"
normalize = "0.5/0.5"
image_size = 16
pool = ["pool.npz"]
count = 100
student = "cifar_resnet:depth=8,width=4"
steps = 3
test = "test.npz"
[select.confident]
method = "confidence"
[generate.made]
method = "dafl:width=8"
steps = 3
[distill.selected]
samples = ["confident"]
[distill.both]
samples = ["confident", "made"]
loss = ["kd"]
"""


def requests() -> Iterator[tuple[str, list[str]]]:
    """Yield a name and a command line for each request. The order is such that every request finds its inputs."""
    from dfkd import generators
    from dfkd.distill import losses

    model = ["--teacher", TEACHER, *COMMON]
    for name, options in SELECTIONS.items():
        yield f"select-{name}", ["select", *model, "--pool", "pool.npz", "--count", "150", *options]
    student = "cifar_resnet:depth=8,width=4,num_classes=10,in_channels=1@student.safetensors"
    for method in (getattr(generators, name) for name in generators.__all__):
        name = method.__name__.lower()
        made = ["generate", *model, "--method", f"{name}:steps=2", "--count", "24", "--batch-size", "16"]
        made += ["--student", student] if method.uses_student or method.needs_student else []
        yield f"generate-{name}", [*made, *(["--samples", "select-random"] if method.needs_real else [])]
    short = ["--student", "cifar_resnet:depth=8,width=4", "--samples", "select-threshold", "--batch-size", "32"]
    short = ["distill", *model, *short, "--test", "test.npz", "--log-every", "1"]
    for name, options in OPTIONS.items():
        yield f"distill-{name}", [*short, *([] if "--steps" in options else ["--steps", "4"]), *options]
    for loss in (name.lower() for name in losses.__all__ if not getattr(getattr(losses, name), "reads_peers", False)):
        yield f"loss-{loss}", [*short, "--steps", "4", "--loss", NEEDS.get(loss, loss)]
    yield "pipeline", ["run", "pipeline.toml"]


def make_inputs(folder: Path) -> None:
    """Write a pool of patches, the digits and two networks, of which the teacher is trained."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from dfkd.app import demo
    from dfkd.models import cifar_resnet

    images, labels = demo.digits()
    np.savez(folder / "pool.npz", images=demo.patches(600))
    np.savez(folder / "test.npz", images=images[:200], labels=labels[:200])
    save_file(demo.train_teacher(images[200:], labels[200:], epochs=2).state_dict(), folder / "teacher.safetensors")
    torch.manual_seed(1)
    save_file(cifar_resnet(8, 4, 10, 1).state_dict(), folder / "student.safetensors")
    (folder / "pipeline.toml").write_text(PIPELINE, encoding="utf-8")


def run_requests(folder: Path) -> dict[str, str]:
    """Run every request in `folder`. Returns the SHA-256 of each file, and the exit status of each request."""
    import torch

    from dfkd.__main__ import entry

    main = importlib.import_module(entry.__module__).main  # revisions define main in different modules

    os.chdir(folder)
    os.environ["DFKD_CACHE"] = str(folder / "cache")
    torch.set_num_threads(1)
    found = {}
    for name, command in requests():
        out = name if command[0] != "run" else "pipeline"
        status = main(command if command[0] == "run" else [*command, "--out", out])
        files = [file for file in sorted(Path(out).rglob("*")) if file.is_file() and file.suffix not in REPORTS]
        found |= {f"{name}: exit status": str(status)} | {f"{name}: {file}": hash_of(file) for file in files}
    return found


def hash_of(file: Path) -> str:
    """Return the SHA-256 of a file. Measured values and checksums are left out of JSON."""
    data = file.read_bytes()
    if file.suffix in (".json", ".jsonl"):
        lines = data.decode().splitlines() if file.suffix == ".jsonl" else [data.decode()]
        data = json.dumps([_computed(json.loads(line)) for line in lines]).encode()
    return hashlib.sha256(data).hexdigest()


def _computed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _computed(item) for key, item in value.items() if key not in VARIES}
    return [_computed(item) for item in value] if isinstance(value, list) else value


def run_revision(tree: Path, inputs: Path, work: Path) -> dict[str, str]:
    """Run the requests with the checkout `tree` in a process and a copy of the inputs. Returns the hashes."""
    subprocess.run(["cp", "-r", str(inputs), str(work)], check=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--run", str(work)]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{tree} failed:\n{ran.stderr[-2000:]}")
    found: dict[str, str] = json.loads((work / "found.json").read_text(encoding="utf-8"))
    return found


def main(revision: str) -> int:
    """Compare `revision` with the working tree. Returns the exit status."""
    with tempfile.TemporaryDirectory() as scratch:
        base, inputs = Path(scratch, "base"), Path(scratch, "inputs")
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(base), revision], cwd=ROOT, check=True)
        try:
            inputs.mkdir()
            make_inputs(inputs)
            # both work in turn in a folder of the same name, because paths are part of some requests
            work = Path(scratch, "work")
            found = []
            for tree in (base, ROOT):
                found.append(run_revision(tree, inputs, work))
                work.rename(Path(scratch, f"done-{len(found)}"))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(base)], cwd=ROOT, check=True)
    before, after = found
    differs = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    for key in differs:
        print(f"differs: {key}" if key in before and key in after else f"only in one: {key}")
    failed = [key for key, value in after.items() if key.endswith("exit status") and value != "0"]
    for key in failed:
        print(f"failed: {key} {after[key]}")
    print(
        f"{len(before)} entries of {revision}, {len(after)} now, {len(differs)} differ, {len(failed)} requests failed"
    )
    return 1 if differs or failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        folder = Path(sys.argv[2]).resolve()
        (folder / "found.json").write_text(json.dumps(run_requests(folder)), encoding="utf-8")
    else:
        sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "HEAD"))
