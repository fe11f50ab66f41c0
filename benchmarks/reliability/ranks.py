"""Kill and stop the processes of one training, and check that nothing is lost: `kill.py` for several ranks.

    python -m benchmarks.reliability.ranks OUT.json --kills 10 --launched 2 --seed 0

Each trial starts a command with two ranks, which are forked or, for `launched`, started by torchrun. The trial disturbs
the ranks, repeats the command until it completes, and compares all bytes with those of two undisturbed ranks. A run may
also change between one and two processes. It must then equal a run of one process up to rounding, so its student has no
BatchNorm. The exit status is 1 if anything was lost.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork does not copy threads, and a child must not wait for them

import torch
from safetensors.torch import load_file

from benchmarks.reliability.scenarios import Lab, clear, different, ended, in_ranks, outcome
from dfkd.distill.trainer import Trainer
from dfkd.system.errors import RequestError

ROOT = Path(__file__).parents[2]
SCENARIOS = ("distill", "distill-source", "distill-views", "generate")
PATIENCE = 10.0
"""Seconds within which all ranks must end after a signal."""
MEANING = {
    "killed": "SIGKILL of one of two ranks at a random moment",
    "stopped": "SIGTERM to both ranks at a random moment",
    "moved": "begun by one process, continued by two, or the other way round",
    "wrong": "an error on one rank",
    "launched": "SIGKILL of a rank of `torchrun --max-restarts`",
    "launcher": "SIGTERM to torchrun",
}
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


class Together(Lab):
    """Commands of the lab, each in two ranks, or in one process for a student without BatchNorm."""

    def arguments(self, scenario, work):
        if scenario != "plain":
            return [*super().arguments(scenario, work), *self.more]
        given = super().arguments("distill", work)
        return [*given, "--student", "benchmarks.reliability.networks.Plain", "--lr", 0.02, "--loss", "kd", "relation"]

    more = ()
    """Further options of a command."""

    def ranks(self, scenario, work, count=2, wait=True, act=None, more=()):
        """Start the command in ranks. `act` changes something in each rank first."""
        work.mkdir(exist_ok=True)
        log = work.with_name(work.name + ".log")
        log.unlink(missing_ok=True)

        def command():
            self.more = more
            if act:
                act()
            return self.command(scenario, work)

        return in_ranks(command, log, count, wait)

    @staticmethod
    def meeting(work):
        """Wait until ranks that were just started have met. Before that, a rank waits long for one that is killed."""
        log, until = work.with_name(work.name + ".log"), time.monotonic() + 300
        while not (log.exists() and log.stat().st_size) and time.monotonic() < until:  # rank 0 speaks after the meeting
            time.sleep(0.01)

    @staticmethod
    def said(work):
        """Return the output of both ranks in the last command."""
        logs = (work.with_name(f"{work.name}.log{rank}") for rank in ("", ".1"))
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    def launch(self, scenario, work, *more):
        """Start the command with torchrun."""
        work.mkdir(exist_ok=True)
        arguments = map(str, self.arguments(scenario, work))
        given = [*LAUNCHER, "--max-restarts", "3", "-m", "dfkd", *arguments, *map(str, more)]
        environment = {**os.environ, "DFKD_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with work.with_name(work.name + ".log").open("w") as log:
            return subprocess.Popen(given, env=environment, cwd=ROOT, stdout=log, stderr=log)


class Trials:
    """Trials of one scenario, with their counts and failures."""

    def __init__(self, lab, scenario, folder, rng):
        self.lab, self.scenario, self.folder, self.rng = lab, scenario, folder, rng
        self.tried, self.survived, self.failures = Counter(), Counter(), []
        self.slowest = 0.0
        folder.mkdir()
        started = time.perf_counter()
        assert lab.ranks(scenario, folder / "whole") == [0, 0], lab.said(folder / "whole")
        self.seconds = time.perf_counter() - started
        self.expected = outcome(scenario, folder / "whole")

    def judge(self, kind, work, wrong):
        """Count a trial."""
        self.tried[kind] += 1
        self.survived[kind] += not wrong
        if wrong:
            self.failures.append(f"{self.scenario}, {kind}: {'; '.join(wrong)} (it said: {self.lab.said(work)[-600:]})")
            print(self.failures[-1], file=sys.stderr)
        clear(work)

    def finish(self, work, expected=None):
        """Repeat the command to its end. Returns what is wrong with its exit status or its results."""
        statuses = self.lab.ranks(self.scenario, work)
        if statuses != [0, 0]:
            return [f"given again it ended with {statuses}"]
        found = outcome(self.scenario, work)
        return [f"differs in {name}" for name in different(expected or self.expected, found)]

    def disturbed(self, kind, count):
        """Send SIGKILL to one rank, or SIGTERM to both, at random moments."""
        for _ in range(count):
            work = self.folder / kind
            children = self.lab.ranks(self.scenario, work, wait=False)
            self.lab.meeting(work)
            time.sleep(self.rng.uniform(0, 0.9) * self.seconds)
            hit = self.rng.sample(children, 1) if kind == "killed" else children
            started = time.perf_counter()
            for child in hit:
                os.kill(child, signal.SIGKILL if kind == "killed" else signal.SIGTERM)
            statuses = [ended(child) for child in children]
            took = time.perf_counter() - started
            self.slowest = max(self.slowest, took)
            allowed = {0, 2, 137} if kind == "killed" else {0, 143, 2}
            wrong = [] if {*statuses} <= allowed else [f"ended with {statuses}"]
            wrong += [f"took {took:.1f} s to end"] if took > PATIENCE else []
            wrong += ["has a traceback"] if "Traceback" in self.lab.said(work) else []
            self.judge(kind, work, wrong or self.finish(work))

    def wrong(self, count):
        """Check that an error on one rank ends both, with one line."""
        for number in range(count):
            work, bad = self.folder / "wrong", number % 2
            statuses = self.lab.ranks(self.scenario, work, act=lambda bad=bad: _spoil(bad))
            lines = [line for line in self.lab.said(work).splitlines() if line.startswith("dfkd ") and "of 2: " in line]
            wrong = [] if statuses == [2, 2] else [f"ended with {statuses}"]
            told = f"dfkd distill: rank {bad} of 2: spoilt"
            wrong += [] if lines == [told] else [f"said {lines}"]
            self.judge("wrong", work, wrong or self.finish(work))

    def launched(self, count):
        """Kill a rank of torchrun, or stop torchrun, after the first checkpoint.

        After a kill, torchrun must start both ranks again, and they must resume.
        """
        longer = ("--steps", 40)
        whole = self.folder / "launched-whole"
        if count:
            assert self.lab.ranks(self.scenario, whole, more=longer) == [0, 0], self.lab.said(whole)
        for number in range(count):
            kind, work = ("launched", "launcher")[number % 2], self.folder / "launched"
            process = self.lab.launch(self.scenario, work, *longer)
            wrong = _wait_for(work / "out" / "checkpoint", process)
            time.sleep(self.rng.uniform(0, 0.5))
            if kind == "launched":
                for child in self.rng.sample(_children(process.pid), 1):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
            else:
                process.terminate()
            status = process.wait()
            if kind == "launched" and status:
                wrong.append(f"torchrun ended with {status}")
            if kind == "launcher" and status:
                wrong += [] if "is saved" in self.lab.said(work) else ["saved nothing"]
                status = self.lab.launch(self.scenario, work, *longer).wait()
                wrong += [f"given again it ended with {status}"] if status else []
            expected, found = (outcome(self.scenario, where) for where in (whole, work))
            self.judge(kind, work, wrong or [f"differs in {name}" for name in different(expected, found)])


def _spoil(bad):
    """Make one rank fail at a step."""
    if os.environ["RANK"] == str(bad):
        advance = Trainer.advance

        def failing(self):
            if self.step == 5:
                raise RequestError("spoilt")
            return advance(self)

        Trainer.advance = failing


def _children(parent):
    """Return the child processes of a process."""
    return [int(number) for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _wait_for(path, process):
    """Wait until a file exists. Returns what is wrong if it does not appear."""
    until = time.monotonic() + 300
    while not path.exists():
        if process.poll() is not None or time.monotonic() > until:
            return ["has not begun"]
        time.sleep(0.05)
    return []


def moved(trials, count):
    """Begin with one process and continue with two, or the reverse. Also run two processes from the start."""
    lab, folder = trials.lab, trials.folder
    whole = folder / "one-whole"
    assert lab.start("plain", whole) == 0, lab.said(whole)
    assert lab.ranks("plain", folder / "two") == [0, 0], lab.said(folder / "two")
    trials.judge("moved", folder / "two", _apart(whole, folder / "two"))
    for number in range(count):
        work = folder / "moved"
        orders = (1, 2) if number % 2 else (2, 1)
        for ranks in orders:
            if ranks == 2:
                children = lab.ranks("plain", work, wait=False, act=None if work.exists() else _stop_itself)
            else:
                children = [lab.start("plain", work, wait=False)]
            statuses = [ended(child) for child in children]
        trials.judge("moved", work, [f"ended with {statuses}"] if any(statuses) else _apart(whole, work))


def _stop_itself():
    """Make this process stop itself at a step."""
    advance = Trainer.advance

    def stopping(self):
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self)

    Trainer.advance = stopping


def _apart(one, other):
    """Return where two runs differ by more than rounding."""
    wrong = []
    for name in ("metrics.jsonl",):
        rows = [[json.loads(line) for line in (run / "out" / name).read_text().splitlines()] for run in (one, other)]
        for a, b in zip(*rows, strict=True):
            for key in a.keys() - {"images_per_second"}:
                if abs(a[key] - b[key]) > 1e-4 * abs(a[key]) + 1e-6:
                    wrong.append(f"{key} of step {a['step']} is {b[key]} and not {a[key]}")
    weights = [load_file(run / "out" / "student.safetensors") for run in (one, other)]
    for name, value in weights[0].items():
        if not torch.allclose(value, weights[1][name], rtol=1e-3, atol=1e-5):
            wrong.append(f"weights {name} differ")
    return wrong[:5]


def measure(options):
    rng, found = random.Random(options.seed), {}
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top).resolve()
        lab = Together(folder)
        for scenario in options.scenarios:
            trials = Trials(lab, scenario, folder / scenario, rng)
            trials.disturbed("killed", options.kills)
            trials.disturbed("stopped", options.kills // 2)
            if scenario == "distill":
                trials.wrong(options.wrong)
                moved(trials, options.moved)
                trials.launched(options.launched)
            found[scenario] = {
                "seconds_uninterrupted": round(trials.seconds, 2),
                "slowest_end_seconds": round(trials.slowest, 2),
                "tried": dict(trials.tried),
                "survived": dict(trials.survived),
                "failures": trials.failures,
            }
            print(f"{scenario}: {json.dumps(found[scenario])}", file=sys.stderr)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=10, help="SIGKILLs of a rank; half as many SIGTERMs")
    parser.add_argument("--moved", type=int, default=4, help="runs that change their number of processes")
    parser.add_argument("--wrong", type=int, default=2, help="errors on one rank")
    parser.add_argument("--launched", type=int, default=4, help="torchrun whose worker is killed, or that is stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenarios", nargs="+", default=SCENARIOS, choices=SCENARIOS)
    options = parser.parse_args()
    given = [argument for argument in sys.argv[1:] if argument != str(options.out)]
    result = {
        "command": " ".join(["python -m benchmarks.reliability.ranks", "OUT.json", *given]),
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "torch": torch.__version__,
        "scenarios": measure(options),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(1 if any(figures["failures"] for figures in result["scenarios"].values()) else 0)


if __name__ == "__main__":
    main()
