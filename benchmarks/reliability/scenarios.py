"""The commands that are killed, their inputs, and the comparison of two results. A command takes about a second."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

# all modules are imported before the fork, also those that a stage imports later, so that a trial is quick
import datasets  # noqa: F401
import faiss  # noqa: F401
import numpy as np
import pyarrow.dataset
import pyarrow.parquet  # noqa: F401
import rich.progress  # noqa: F401
import torch
import torch._dynamo
from PIL import Image
from safetensors.torch import save_file

import dfkd.distill.stage
import dfkd.generators.stage
import dfkd.models.load
import dfkd.report.compare
import dfkd.select.selection_writer
from benchmarks.reliability.faults import Faults
from dfkd.app import cli
from dfkd.distill.teacher_cache import views as teacher_views
from dfkd.models import cifar_resnet
from dfkd.select import stored_scores

SCENARIOS = (
    "select",
    "select-files",
    "select-filtered",
    "generate",
    "distill",
    "distill-source",
    "distill-views",
    "distill-together",
    "distill-mutual",
    "run",
)
PART_ROWS, ROWS_PER_SHARD, BYTES_PER_SHARD = 96, 40, 12_000
"""Sizes small enough that the small pool has several parts and shards."""
TIMES = ("seconds", "peak_memory_bytes", "images_per_second", "files", "checksum")
"""Fields of results and metrics that differ between two runs of the same request."""
TEACHER = "cifar_resnet:depth=8,width=4,in_channels={}@{}"
STUDENT = "cifar_resnet:depth=8,width=2"
GENERATOR = "dafl:latent=4,width=2"
SHORT = ("--steps", 12, "--checkpoint-every", 4, "--log-every", 2, "--batch-size", 16)
KEPT = ("--keep-weights", 6)
"""At the steps of checkpoints and between them."""


def in_child(work, log, *, fault=None, wait=True):
    """Call `work` in a forked child with its output in `log`.

    Returns its exit status, or its process number if not `wait`.
    """
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            torch.set_num_threads(1)
            try:
                faults = Faults(**fault) if fault else None
                status = work() or 0
                if faults:
                    print(f"operations: {faults.count}", file=sys.stderr)
            except BaseException:
                import traceback

                traceback.print_exc()
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    return ended(child) if wait else child


def in_ranks(work, log, count=2, wait=True):
    """Call `work` in several forked children, which connect like those of torchrun.

    The output of rank 1 goes to the file `log`.1. Returns the exit statuses, or the process numbers if not `wait`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    children = []
    for rank in range(count):

        def ranked(rank=rank):
            os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank))
            return work()

        children.append(in_child(ranked, log.with_name(f"{log.name}.{rank}") if rank else log, wait=False))
    return [ended(child) for child in children] if wait else children


def ended(child):
    """Wait for a child. Returns its exit status as a shell would."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


class Lab:
    """Inputs of the commands: a random teacher, a raw pool, a folder of photos, a selection, and a pipeline."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "log"
        assert in_child(self._make, self.log) == 0, self.log.read_text()

    def _make(self):
        torch.manual_seed(0)
        for channels in (1, 3):
            teacher = cifar_resnet(depth=8, width=4, in_channels=channels)
            save_file(teacher.state_dict(), self.folder / f"teacher{channels}.safetensors")
        rng = np.random.default_rng(0)
        np.savez(self.folder / "pool.npz", images=rng.integers(0, 256, (300, 12, 12, 1), dtype=np.uint8))
        self._make_dull(rng)
        labels = np.arange(40) % 10
        np.savez(self.folder / "test.npz", images=rng.integers(0, 256, (40, 12, 12, 1), dtype=np.uint8), labels=labels)
        (self.folder / "photos").mkdir()
        for i in range(60):
            pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8).repeat(15, axis=0).repeat(15, axis=1)
            Image.fromarray(pixels).save(self.folder / "photos" / f"{i:02d}.png")
        os.environ["DFKD_CACHE"] = str(self.folder / "cache")
        return self.command("select", self.folder)

    def _make_dull(self, rng):
        """Write a teacher of high-contrast images, and a pool of low contrast, so that a fitted filter is kept."""
        blocks = rng.integers(0, 256, (600, 4, 4, 1), dtype=np.uint8).repeat(3, axis=1).repeat(3, axis=2)
        np.savez(self.folder / "dull.npz", images=120 + blocks // 16)
        teacher = cifar_resnet(depth=8, width=4, in_channels=1)
        teacher.linear.weight.data *= 50  # confident predictions
        for _ in range(30):  # the running statistics move by a tenth per pass
            teacher(torch.from_numpy(blocks).permute(0, 3, 1, 2) / 127.5 - 1)
        save_file(teacher.state_dict(), self.folder / "seeing.safetensors")

    def arguments(self, scenario, work):
        """Return the command line of a scenario that writes to `work`/out."""
        gray, color = (TEACHER.format(n, self.folder / f"teacher{n}.safetensors") for n in (1, 3))
        out = ("--out", work / "out", "--precision", "fp32", "--device", "cpu")
        if scenario == "select":
            more = ("--pool", self.folder / "pool.npz", "--image-size", 12, "--normalize", "0.5/0.5", "--count", 130)
            return ["select", "--teacher", gray, *more, "--batch-size", 32, "--deduplicate", 0.9999999, *out]
        if scenario == "select-files":
            more = ("--pool", self.folder / "photos", "--image-size", 72, "--count", 30, "--method", "random")
            return ["select", "--teacher", color, *more, "--batch-size", 16, *out]
        if scenario == "select-filtered":
            teacher = TEACHER.format(1, self.folder / "seeing.safetensors")
            more = ("--pool", self.folder / "dull.npz", "--image-size", 12, "--normalize", "0.5/0.5", "--count", 130)
            return ["select", "--teacher", teacher, *more, "--batch-size", 64, "--filter", "fitted", *out]
        if scenario == "generate":
            more = ("--image-size", 12, "--normalize", "0.5/0.5", "--method", GENERATOR, "--count", 90)
            return ["generate", "--teacher", gray, *more, *SHORT, *out]
        if scenario == "distill":
            data = ("--samples", self.folder / "out", "--test", self.folder / "test.npz")
            return ["distill", "--teacher", gray, "--student", STUDENT, *data, *SHORT, *KEPT, "--mixup", 0.2, *out]
        if scenario == "distill-source":
            data = ("--image-size", 12, "--normalize", "0.5/0.5", "--source", GENERATOR, "--ema", 0.9)
            return ["distill", "--teacher", gray, "--student", STUDENT, *data, *SHORT, *out]
        if scenario == "distill-views":
            data = ("--samples", self.folder / "out", "--loss", "kd", "--teacher-views", 2)
            return ["distill", "--teacher", gray, "--student", STUDENT, *data, *SHORT, *out]
        if scenario in ("distill-together", "distill-mutual"):
            losses = "kd" if scenario == "distill-together" else "kd dml"
            data = ("--samples", self.folder / "out", "--precision", "fp32", "--device", "cpu", "--init", "none")
            others = [f"--student-seed {seed} --loss {losses} --out {work / 'out' / str(seed)}" for seed in (1, 2)]
            first = ("--loss", *losses.split(), "--out", work / "out" / "0")
            return ["distill", "--teacher", gray, "--student", STUDENT, *data, *SHORT, *KEPT, *first, "--also", *others]
        file = work.with_name(work.name + ".toml")  # a file of the user, outside the folder that is compared
        file.write_text(
            f'out = "{work / "out"}"\n[defaults]\nteacher = "{gray}"\nnormalize = "0.5/0.5"\nimage-size = 12\n'
            f'precision = "fp32"\npool = ["{self.folder / "pool.npz"}"]\nstudent = "cifar_resnet:depth=8,width=2"\n'
            f'steps = 6\ncheckpoint-every = 3\nbatch-size = 16\ntest = "{self.folder / "test.npz"}"\n'
            '[select.drawn]\nmethod = "random"\ncount = 90\nbatch-size = 32\n[distill.plain]\nsamples = ["drawn"]\n'
        )
        return ["run", file]

    def command(self, scenario, work):
        """Run the command of a scenario in this process."""
        stored_scores.PART_ROWS = teacher_views.PART_ROWS = PART_ROWS
        dfkd.select.selection_writer.ROWS_PER_SHARD = ROWS_PER_SHARD
        dfkd.select.selection_writer.BYTES_PER_SHARD = BYTES_PER_SHARD
        os.environ["DFKD_CACHE"] = str(work / "cache") if work != self.folder else os.environ["DFKD_CACHE"]
        return cli.main([str(argument) for argument in self.arguments(scenario, work)])

    def start(self, scenario, work, fault=None, wait=True, log=None):
        """Run the command of a scenario in a child."""
        work.mkdir(exist_ok=True)
        log = log or work.with_name(work.name + ".log")
        return in_child(lambda: self.command(scenario, work), log, fault=fault, wait=wait)

    def spawn(self, scenario, work):
        """Run the command as a user does, in a new process. Only the cache's folder differs."""
        work.mkdir(exist_ok=True)
        arguments = [sys.executable, "-m", "dfkd", *map(str, self.arguments(scenario, work))]
        environment = {**os.environ, "DFKD_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
        with work.with_name(work.name + ".log").open("w") as log:
            return subprocess.Popen(arguments, env=environment, stdout=log, stderr=log)

    @staticmethod
    def said(work):
        """Return the output of the last command."""
        return work.with_name(work.name + ".log").read_text(errors="replace")


def outcome(scenario, work):
    """Return every byte that must be the same however often a command was killed, by file. Times are left out."""
    found = {}
    left = sorted(path.name for path in work.iterdir() if path.name not in ("out", "cache"))
    found["left over"] = left
    for path in sorted((work / "out").rglob("*")):
        name = str(path.relative_to(work / "out"))
        if path.is_dir() or path.name in ("report.html", "report.csv", "state.pt"):
            found[name] = "is there"
        elif path.name in ("result.json", "progress.json"):
            found[name] = _plain(json.loads(path.read_text()))
        elif path.name == "metrics.jsonl":
            found[name] = [_plain(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == "config.toml":  # the folder in the request differs, and so does the checksum
            lines = path.read_text().replace(str(work), "WORK").splitlines()
            found[name] = [line for line in lines if not line.startswith("checksum")]
        else:
            found[name] = path.read_bytes()
    for path in sorted((work / "cache").rglob("*")):
        if path.is_file() and not path.name.endswith(".partial"):  # dfkd removes these after a day
            found[f"cache/{path.name}"] = path.read_bytes()
    return found


def _plain(value):
    return {k: v for k, v in value.items() if k not in (*TIMES, "state")}


def different(one, other):
    """Return the names in which two outcomes differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def clear(work):
    """Remove a trial's folder, and the backups of `Faults` beside it."""
    shutil.rmtree(work, ignore_errors=True)
    for path in work.parent.glob(f"{work.name}.backup-*"):
        path.unlink()


def last_line(text):
    """Return the last line of a command's output, without the operation count of `Faults`."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("operations: ")]
    return lines[-1] if lines else ""


def operations(text):
    """Return the number of file operations that a command without a fault printed at its end."""
    return int(text.rsplit("operations: ", 1)[1])
