"""What the script makes of metrics; `tests/distributed` starts several processes."""

import json
import os
from pathlib import Path

import pytest


class Done:
    def wait(self):
        return 0


def test_rate__is_the_median_of_the_rows_after_the_first_two(script, tmp_path, monkeypatch):
    machines = script("machines", "speed")

    def start(command, out, options, threads, processes):
        assert (command, options, threads, processes) == (("distill",), ("--steps", 5), 1, 2)
        out.mkdir()
        rates = [1, 1, 50, 40, 60]
        rows = [json.dumps({"step": step, "images_per_second": rate}) for step, rate in enumerate(rates)]
        (out / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 5, "ima']))  # the last one is being written
        return Done()

    monkeypatch.setattr(machines, "start", start)
    assert machines.rate(("distill",), tmp_path / "out", ("--steps", 5), 1, processes=2) == 50


def test_rate__tells_what_a_command_that_failed_has_said(script, tmp_path, monkeypatch):
    machines = script("machines", "speed")
    monkeypatch.setattr(Done, "wait", lambda self: 2)
    monkeypatch.setattr(machines, "start", lambda *given, **more: Done())
    (tmp_path / "out.log").write_text("dfkd distill: rank 1 of 2: no")
    with pytest.raises(RuntimeError, match="rank 1 of 2: no"):
        machines.rate((), tmp_path / "out", (), 1, processes=2)


def test_between_pieces__is_the_median_of_the_times_between_their_files(script, tmp_path, monkeypatch):
    machines = script("machines", "speed")

    def run(command, env, **more):
        assert command[2:4] == ["dfkd", "select"] and command[-2:] == ["--out", str(tmp_path / "ray0")]
        scores = Path(env["DFKD_CACHE"]) / "scores" / "pool"
        scores.mkdir(parents=True)
        for number, second in enumerate([10, 12, 15, 18, 40]):
            file = scores / f"scores-{number}.parquet"
            file.touch()
            os.utime(file, (second, second))

    monkeypatch.setattr(machines.subprocess, "run", run)
    assert machines.between_pieces(tmp_path, "ray0", "teacher", "pool.npz", "--engine", "ray") == 3
