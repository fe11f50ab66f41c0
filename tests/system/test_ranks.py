"""Of one process; `tests/distributed` has two."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch

from dfkd.app import cli
from dfkd.system import ranks
from dfkd.system.errors import RequestError
from dfkd.system.shares import Share, all_of, means, own, pooled, share, summed, weight, whole
from dfkd.system.signals import StopRequest


@pytest.fixture
def launched(monkeypatch):
    """As torchrun starts rank 1 of 2."""
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))


_RANK = "import time; from dfkd.system.ranks import _end_with_launcher as e; e(); print(1, flush=True); time.sleep({})"
_LAUNCHER = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
@pytest.mark.parametrize(("variable", "seconds"), [("TORCHELASTIC_RUN_ID", 60), ("SLURM_JOB_ID", 3)])
def test_end_with_launcher__is_for_torchrun_alone(variable, seconds):
    """The rank's output closes when it ends: at once, or after its sleep."""
    environment = {k: v for k, v in os.environ.items() if k != "TORCHELASTIC_RUN_ID"} | {variable: "1"}
    command = [sys.executable, "-c", _LAUNCHER, _RANK.format(seconds) + "; print(2)"]
    launcher = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    with launcher, launcher.stdout as output:
        assert output.readline() == b"1\n"
        launcher.send_signal(signal.SIGKILL)
        began = time.monotonic()
        assert output.read() == (b"" if variable == "TORCHELASTIC_RUN_ID" else b"2\n")
        assert time.monotonic() - began < 30


def test_one_process__is_given_back_what_it_gives():
    x = torch.randn(5, 2, requires_grad=True)
    assert whole(x, 5) is x and own(x) is x and summed(x) is x
    assert pooled(x[0], x[1], 3.0)[1] is not None and means({"a": 1.0}) == {"a": 1.0}
    assert share(5) == all_of(5) == Share(0, 5, 5) and weight(5) == 1
    assert ranks.from_first(lambda: 7) == 7 and ranks.on_first(lambda: 7) == 7 and ranks.dealt([1, 2]) == [1, 2]
    ranks.meet()
    ranks.check_same({"a": 1}, lambda a, b: ["a"])


def test_vote__of_one_process_is_what_it_knows_now():
    stop = StopRequest()
    vote = ranks.Vote(stop)
    vote.cast()
    assert vote.result() is None
    stop.signal = 15
    assert vote.result() == 15


def test_share__within_a_part_is_counted_from_the_parts_start():
    rows = Share(3, 7, 10)
    assert rows.within(0, 4) == Share(3, 4, 4)
    assert rows.within(4, 10) == Share(0, 3, 6)
    assert len(rows.within(8, 10)) == 0
    assert torch.equal(torch.arange(10)[rows.rows], torch.tensor([3, 4, 5, 6]))


@pytest.mark.parametrize("size", ["", "1", "two"])
def test_launched__is_false_for_one_process(launched, monkeypatch, size):
    assert ranks.launched() and ranks.quiet()
    monkeypatch.setenv("WORLD_SIZE", size)
    assert not ranks.launched() and not ranks.quiet() and ranks.named() == ""


@pytest.mark.parametrize("name", ["select", "run", "evaluate", "compare"])
def test_command__that_runs_in_one_process_says_what_to_do_instead(launched, monkeypatch, capsys, name):
    given = {
        "select": ["--teacher", "t", "--pool", "p", "--out", "o"],
        "run": ["file.toml"],
        "evaluate": ["--model", "m", "--data", "d"],
        "compare": ["a", "--out", "o.html"],
    }
    assert cli.main([name, *given[name]]) == 2
    assert capsys.readouterr().err == "", "rank 0 says it"
    monkeypatch.setenv("RANK", "0")
    assert cli.main([name, *given[name]]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"dfkd {name}: rank 0 of 2: dfkd {name} runs in one process") and said.count("\n") == 1
    assert {"select": "--part", "run": "several times"}.get(name, "without torchrun") in said


def test_arguments__that_are_wrong_are_told_by_rank_0_alone(launched, monkeypatch, capsys):
    assert cli.main(["distill", "--stepz", "3"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["distill", "--stepz", "3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_lost_connection__is_found_behind_other_errors():
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:2257")
    try:
        raise RequestError("the backward pass fails") from lost
    except RequestError as error:
        assert ranks._is_lost(error)
    assert not ranks._is_lost(RequestError("the teacher is no file"))


@pytest.mark.usefixtures("launched")
def test_joined__ends_if_the_other_ranks_do_not_start(monkeypatch):
    monkeypatch.setattr(ranks, "MEETING", timedelta(seconds=1))
    told = "the other ranks are not found by MASTER_ADDR=127.0.0.1 and MASTER_PORT=1"
    with pytest.raises(RequestError, match=told), ranks.joined():
        pass
