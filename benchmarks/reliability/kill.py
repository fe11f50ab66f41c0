"""Kill the real commands, at random moments and at every file operation, and check that nothing is lost.

    python -m benchmarks.reliability.kill OUT.json --kills 60 --seed 0        # minutes on one core
    python -m benchmarks.reliability.kill --table OUT.json                    # the table of docs/reliability.md

Every trial runs a command in its own process and kills it. The process is a fork of one with imported libraries, or
with --spawned a new one, as a user starts it. The trial then repeats the command until it completes, and compares all
bytes with those of an uninterrupted command. `faults` defines what a power cut loses. The figures of the measured
scenarios replace those in an existing OUT.json. The exit status is 1 if anything was lost.
"""

import argparse
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

from benchmarks.reliability.damage import damage
from benchmarks.reliability.faults import CUT_STATUS
from benchmarks.reliability.scenarios import SCENARIOS, Lab, clear, different, ended, last_line, operations, outcome

PATIENCE = 5.0
"""Seconds within which a command must end after SIGINT or SIGTERM."""
MEANING = {
    "killed": "SIGKILL at a random moment",
    "spawned": "the same, `python -m dfkd` as a user starts it",
    "stopped": "SIGINT or SIGTERM at a random moment",
    "cut": "power cut before each file operation",
    "cut twice": "a second power cut while going on",
    "error": "full disk or I/O error at each file operation",
    "small disk": "a disk that fills up, then is read-only, then has room",
    "races": "two commands on one folder, or on one cache, at once",
    "flipped": "bits flipped in what was written",
    "truncated": "what was written cut short",
}


class Trials:
    """Trials of one scenario, with their counts and failures."""

    def __init__(self, lab, scenario, folder, rng):
        self.lab, self.scenario, self.folder, self.rng = lab, scenario, folder, rng
        self.tried, self.survived, self.failures = Counter(), Counter(), []
        self.slowest = 0.0
        whole = folder / "whole"
        started = time.perf_counter()
        assert lab.start(scenario, whole) == 0, lab.said(whole)
        self.seconds = time.perf_counter() - started
        self.expected = outcome(scenario, whole)
        counted = folder / "counted"
        assert lab.start(scenario, counted, {"root": counted}) == 0, lab.said(counted)
        self.operations = operations(lab.said(counted))

    def judge(self, kind, work, wrong=None, more=""):
        """Count a trial. Its folder must equal that of an uninterrupted command."""
        self.tried[kind] += 1
        wrong = wrong or [f"differs in {name}" for name in different(self.expected, outcome(self.scenario, work))]
        if wrong:
            said = last_line(self.lab.said(work))
            self.failures.append(f"{self.scenario}, {kind} {more}: {'; '.join(wrong[:4])} (it said: {said})")
            print(self.failures[-1], file=sys.stderr)
        else:
            self.survived[kind] += 1
        clear(work)

    def finish(self, work):
        """Repeat the command to its end. Returns what is wrong with its exit status."""
        status = self.lab.start(self.scenario, work)
        return [] if status == 0 else [f"given again it ended with {status}"]

    def killed(self, kills):
        """Kill up to three times in a row, and then run to the end."""
        while self.tried["killed"] < kills:
            work, wrong = self.folder / "killed", None
            in_a_row = self.rng.randint(1, 3)
            for _ in range(in_a_row):
                child = self.lab.start(self.scenario, work, wait=False)
                time.sleep(self.rng.uniform(0, self.seconds))
                os.kill(child, signal.SIGKILL)
                ended(child)
            wrong = self.finish(work)
            self.tried["killed"] += in_a_row - 1
            self.survived["killed"] += 0 if wrong else in_a_row - 1
            self.judge("killed", work, wrong)

    def spawned(self, kills):
        """Kill a new process in the second half of its time, because the first half is imports."""
        whole = self.folder / "spawned-whole"
        started = time.perf_counter()
        assert self.lab.spawn(self.scenario, whole).wait() == 0, self.lab.said(whole)
        seconds, expected = time.perf_counter() - started, outcome(self.scenario, whole)
        for _ in range(kills):
            work = self.folder / "spawned"
            process = self.lab.spawn(self.scenario, work)
            time.sleep(self.rng.uniform(0.5, 1.0) * seconds)
            process.kill()
            process.wait()
            status = self.lab.spawn(self.scenario, work).wait()
            wrong = [f"ended with {status}"] if status else different(expected, outcome(self.scenario, work))
            self.expected, kept = expected, self.expected
            self.judge("spawned", work, wrong)
            self.expected = kept

    def stopped(self, signals):
        """Send SIGINT or SIGTERM, expect status 130 or 143 within seconds, and then run to the end."""
        for _ in range(signals):
            work, number = self.folder / "stopped", self.rng.choice([signal.SIGINT, signal.SIGTERM])
            child = self.lab.start(self.scenario, work, wait=False)
            time.sleep(0.05 + self.rng.uniform(0, self.seconds))
            started = time.perf_counter()
            os.kill(child, number)
            status = ended(child)
            took = time.perf_counter() - started
            self.slowest = max(self.slowest, took)
            wrong = [] if status in (0, 128 + number) else [f"ended with {status} after signal {number}"]
            wrong += [f"took {took:.1f} s to end"] if took > PATIENCE else []
            self.judge("stopped", work, wrong or self.finish(work))

    def at_operations(self, kind, share, twice=0.0):
        """Cause a power cut or an error at each operation, or at a random share of them."""
        numbers = [n for n in range(self.operations) if self.rng.random() < share] or [self.operations // 2]
        for number in numbers:
            work = self.folder / kind
            fault = {"root": work, "kind": kind, "at": number, "seed": self.rng.random()}
            status, wrong = self.lab.start(self.scenario, work, fault), []
            if kind == "error":
                said = self.lab.said(work)
                # status 0: an error while an unneeded file is removed changes nothing
                wrong = [] if status in (0, 2) and "Traceback" not in said else [f"ended with {status}"]
            elif status != CUT_STATUS:
                wrong = [f"was not cut but ended with {status}"]
            again = kind == "cut" and self.rng.random() < twice
            if again:
                fault |= {"at": self.rng.randrange(self.operations)}
                wrong += [] if self.lab.start(self.scenario, work, fault) in (0, CUT_STATUS) else ["the second cut"]
            self.judge("cut twice" if again else kind, work, wrong or self.finish(work), f"at operation {number}")

    def small_disk(self, count):
        """Run on a real file system that is too small, then read-only, then large enough. Mounting it needs root."""
        pages = sum(-(-p.stat().st_size // 4096) for p in (self.folder / "whole").rglob("*") if p.is_file())
        for _ in range(count):
            work, wrong = self.folder / "disk", []
            work.mkdir()
            size = 4096 * self.rng.randint(3, pages)
            if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", work], check=False).returncode:
                return
            try:
                for mode, said in (("rw", "the disk is full"), ("ro", "written to")):
                    subprocess.run(["mount", "-o", f"remount,{mode},size={size}", work], check=True)
                    status = self.lab.start(self.scenario, work)
                    log = self.lab.said(work)
                    if status and (status != 2 or said not in last_line(log) or "Traceback" in log):
                        wrong.append(f"of {size:,} bytes, {mode}, ended with {status}: {last_line(log)}")
                subprocess.run(["mount", "-o", "remount,rw,size=100m", work], check=True)
                self.judge("small disk", work, wrong or self.finish(work))
            finally:
                subprocess.run(["umount", work], check=True)
            work.rmdir()

    def races(self, count):
        """Run two commands on one folder at once. The second is refused, or shares the pipeline."""
        for _ in range(count):
            work = self.folder / "race"
            children = [self.lab.start(self.scenario, work, wait=False)]
            time.sleep(self.rng.uniform(0, 0.5 * self.seconds))
            other = self.folder / "race-other.log"
            children.append(self.lab.start(self.scenario, work, wait=False, log=other))
            statuses = sorted(ended(child) for child in children)
            log = self.lab.said(work) + other.read_text(errors="replace")
            allowed = ([0, 0],) if self.scenario == "run" else ([0, 0], [0, 2])
            wrong = [] if statuses in allowed else [f"ended with {statuses}"]
            if statuses == [0, 2] and "another command is writing this folder" not in log:
                wrong.append("was refused without saying why")
            self.judge("races", work, wrong)

    def shared_cache(self, count):
        """Run two selections of one pool at once into two folders, with one cache."""
        for _ in range(count):
            works = [self.folder / "one", self.folder / "other"]
            for work in works:
                work.mkdir()
            cache = self.folder / "shared-cache"
            cache.mkdir()
            for work in works:
                (work / "cache").symlink_to(cache)
            children = [self.lab.start(self.scenario, work, wait=False) for work in works]
            statuses = [ended(child) for child in children]
            for work in works:
                (work / "cache").unlink()
                (work / "cache").mkdir()
                for path in cache.iterdir():
                    os.system(f"cp -r '{path}' '{work / 'cache'}'")
                self.judge("races", work, [f"ended with {statuses}"] if any(statuses) else None)
            os.system(f"rm -r '{cache}'")


def measure(options):
    rng = random.Random(options.seed)
    found = {}
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top).resolve()
        lab = Lab(folder)
        for scenario in options.scenarios:
            (folder / scenario).mkdir()
            trials = Trials(lab, scenario, folder / scenario, rng)
            trials.killed(options.kills)
            trials.stopped(options.kills // 3)
            trials.at_operations("cut", options.share, twice=0.3)
            trials.at_operations("error", options.share)
            trials.small_disk(options.disks)
            trials.races(options.races)
            if scenario.startswith("select"):
                trials.shared_cache(options.races)
            if options.spawned:
                trials.spawned(options.spawned)
            if options.flips:
                damage(trials, options.flips)
            found[scenario] = {
                "command": " ".join(["python -m benchmarks.reliability.kill", "OUT.json", *options.given]),
                "date": date.today().isoformat(),
                "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
                "file_operations": trials.operations,
                "seconds_uninterrupted": round(trials.seconds, 2),
                "slowest_stop_seconds": round(trials.slowest, 2),
                "tried": dict(trials.tried),
                "survived": dict(trials.survived),
                "failures": trials.failures,
            }
            print(f"{scenario}: {json.dumps(found[scenario])}", file=sys.stderr)
    return found


def table(result):
    """Return the figures as a Markdown table with survived and tried trials."""
    names = [name for name in SCENARIOS if name in result]
    lines = [f"| | {' | '.join(f'`{name}`' for name in names)} |", f"| --- |{' --- |' * len(names)}"]
    for kind, meaning in MEANING.items():
        cells = []
        for name in names:
            tried, survived = (result[name][what].get(kind, 0) for what in ("tried", "survived"))
            cells.append(f"{survived:,} of {tried:,}" if tried else "-")
        lines.append(f"| {meaning} | {' | '.join(cells)} |")
    operations = [f"{result[name]['file_operations']:,}" for name in names]
    stops = [f"{result[name]['slowest_stop_seconds']:.1f} s" for name in names]
    lines += [f"| file operations of a whole command | {' | '.join(operations)} |"]
    lines += [f"| slowest end after SIGINT or SIGTERM | {' | '.join(stops)} |"]
    return "\n".join([*lines, f"| date | {' | '.join(result[name]['date'] for name in names)} |"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--table", action="store_true", help="print the table of an OUT.json that is there")
    parser.add_argument("--kills", type=int, default=60, help="random SIGKILLs a scenario; a third as many signals")
    parser.add_argument("--share", type=float, default=1.0, help="share of the file operations that are cut")
    parser.add_argument("--disks", type=int, default=10, help="small disks, where the user may mount them")
    parser.add_argument("--races", type=int, default=5)
    parser.add_argument("--spawned", type=int, default=0, help="kills of processes that import everything themselves")
    parser.add_argument("--flips", type=int, default=5, help="flipped bits a file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenarios", nargs="+", default=SCENARIOS, choices=SCENARIOS)
    options = parser.parse_args()
    options.given = [argument for argument in sys.argv[1:] if argument != str(options.out)]
    if options.table:
        print(table(json.loads(options.out.read_text())))
        return
    measured = measure(options)
    before = json.loads(options.out.read_text()) if options.out.exists() else {}  # keeps other scenarios
    options.out.write_text(json.dumps(before | measured, indent=2) + "\n")
    print(table(before | measured))
    sys.exit(1 if any(figures["failures"] for figures in measured.values()) else 0)


if __name__ == "__main__":
    main()
