"""Damage files that a command wrote, by flipped bits and truncation.

A reader must refuse a damaged file, make it again, or give the same result.
"""

import os

import numpy as np
import torch

from benchmarks.reliability.scenarios import ended, in_child, last_line
from dfkd.config import InspectConfig
from dfkd.formats.run_folder import Progress
from dfkd.formats.shards import Shards
from dfkd.models.load import load_model
from dfkd.report import inspection
from dfkd.report.collect import read_run
from dfkd.system.errors import RequestError

REFUSED, WRONG, MISSED = 2, 3, 4
LOGS = ("metrics.jsonl",)
"""Files without a checksum: a run appends to them while it trains."""


def damage(trials, flips):
    """Flip a bit in each file of a finished folder `flips` times and truncate it once.

    Read the folder each time, and restore.
    """
    work = trials.folder / "whole"
    places = {"select": [work / "out", work / "cache"], "select-files": [work / "out", work / "cache"]}
    if trials.scenario == "run":  # the other scenarios have the same folders
        return
    read = read_finished if trials.scenario.startswith("distill") else read_selection
    expected = read(work / "out")
    for place in places.get(trials.scenario, [work / "out"]):
        for path in sorted(p for p in place.rglob("*") if p.is_file() and p.name != "request.json"):
            good = path.read_bytes()
            for number in range(flips + 1):
                kind = "flipped" if number < flips else "truncated"
                path.write_bytes(flipped(good, trials.rng) if kind == "flipped" else good[: len(good) // 2])
                if place.name == "cache":
                    _command(trials, work, path, kind)
                else:
                    _reader(trials, work, path, kind, read, expected)
                path.write_bytes(good)


def flipped(data, rng):
    """Return the bytes with one bit flipped."""
    position = rng.randrange(len(data))
    return data[:position] + bytes([data[position] ^ 1 << rng.randrange(8)]) + data[position + 1 :]


def read_selection(folder):
    """Return everything that is read of a selection, as text."""
    shards = Shards(folder)
    contents = inspection.read(folder)
    names = ("source", "prediction", "confidence", "entropy", "logits", "kept_classes")
    columns = [shards.column(name).tolist() for name in names]
    pool = {name: values.tolist() for name, values in (contents.pool or {}).items()}
    return repr([shards.manifest, columns, pool, shards.pixels(np.arange(len(shards))).tobytes()])


def read_finished(folder):
    """Return everything that is read of a run as text, with the checkpoint that a continued run starts from."""
    run = read_run(str(folder))
    state = load_model(str(folder)).module.state_dict()
    found = Progress(folder, "; make it again").load()
    assert found is not None
    tensors = [(name, value.numpy().tobytes()) for name, value in state.items()]
    step = [(name, value.numpy().tobytes()) for name, value in found[0]["student"].items()]
    return repr([run, tensors, step, found[1]])


def _reader(trials, work, path, kind, read, expected):
    """Read the damaged folder in a child, and count the trial.

    Another content than before is a failure. So is damage that neither the reader nor `inspect --verify` reports.
    """

    def work_in_child():
        try:
            same = read(work / "out") == expected
        except RequestError as refusal:
            print(f"refused: {refusal}")
            return REFUSED
        if not same:
            return WRONG
        try:
            inspection.run(InspectConfig(folder=str(work / "out"), verify=True))
        except RequestError:
            return 0
        return 0 if path.name in LOGS else MISSED

    log = work.with_name(work.name + ".log")
    status = in_child(work_in_child, log)
    _count(trials, kind, path, [] if status in (0, REFUSED) else [f"ended with {status}: {last_line(log.read_text())}"])


def _command(trials, work, path, kind):
    """Run `select` on the damaged cache, and count the trial.

    Damaged scores must be computed again, with equal bytes.
    """
    again = work.with_name("again")
    again.mkdir()
    os.rename(work / "cache", again / "cache")
    try:
        status = ended(trials.lab.start(trials.scenario, again, wait=False))
        wrong = [] if status in (0, REFUSED) else [f"ended with {status}"]
        if status == 0:
            names = [p.name for p in (work / "out").iterdir()]
            wrong = [n for n in names if (work / "out" / n).read_bytes() != (again / "out" / n).read_bytes()]
    finally:
        os.rename(again / "cache", work / "cache")
        os.system(f"rm -rf '{again}'")
    _count(trials, kind, path, wrong)


def _count(trials, kind, path, wrong):
    trials.tried[kind] += 1
    if wrong:
        trials.failures.append(f"{trials.scenario}, {kind} {path.name}: {'; '.join(wrong)}")
        print(trials.failures[-1])
    else:
        trials.survived[kind] += 1


torch.set_num_threads(1)
