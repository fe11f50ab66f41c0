"""How pieces are handed out, with workers that end, without Ray: it is played by a few lines."""

import signal
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from dfkd.config import SelectConfig
from dfkd.select import ray_scorer
from dfkd.select.ray_scorer import RayScorer
from dfkd.select.stored_scores import features_file, scores_file
from dfkd.system import ray_session
from dfkd.system.device import Place
from dfkd.system.errors import RequestError
from dfkd.system.files import replacing
from dfkd.system.signals import Interrupted, StopRequest


class ActorDied(Exception):
    pass


class TaskFailed(Exception):
    def __init__(self, cause):
        self.cause = cause


class Played:
    """Ray, in which `calls` decides what happens to a worker's call: a result, or an error that it raises."""

    exceptions = SimpleNamespace(RayActorError=ActorDied, RayTaskError=TaskFailed)

    def __init__(self, calls, cpus=2, gpus=0):
        self._calls, self._there = calls, {"CPU": cpus, "GPU": gpus}
        self.workers, self.options, self.scored = [], None, []

    def cluster_resources(self):
        return self._there

    def remote(self, target):
        def options(**given):
            self.options = given
            return SimpleNamespace(remote=self._start)

        return SimpleNamespace(options=options)

    def _start(self, *given):
        number = len(self.workers)
        worker = SimpleNamespace(
            open=SimpleNamespace(remote=lambda: (number, None)),
            score=SimpleNamespace(remote=lambda part: (number, part)),
        )
        self.workers.append(worker)
        return worker

    def wait(self, answers, timeout):
        ready = [answer for answer in answers if self._calls(*answer) != "is waited for"][:1]
        return ready, [answer for answer in answers if answer not in ready]

    def get(self, answer):
        worker, part = answer
        result = self._calls(worker, part)
        if isinstance(result, Exception):
            raise result
        self.scored += [] if part is None else [part]
        return (0, {}) if part is None else (10, {100 * part: "broken"})


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Scores six pieces by a played Ray: what it gave, and the Ray. The files of the pieces are here already."""

    def run(calls, workers=2, stop=None, device="cpu", **there):
        played, config = Played(calls, **there), SelectConfig(teacher="t", pool=("p",), out="o", workers=workers)
        request = SimpleNamespace(config=config, place=Place(torch.device(device), torch.float32))

        @contextmanager
        def stop_request():
            asked = StopRequest()
            asked.signal = stop
            yield asked

        monkeypatch.setattr(ray_scorer, "connected", lambda: nullcontext(played))
        monkeypatch.setattr(ray_scorer, "stop_request", stop_request)
        monkeypatch.setattr(RayScorer, "_fetch", lambda *given: None)
        counted = []
        scorer = RayScorer.__new__(RayScorer)
        vars(scorer).update(request=request, adapted=None, scoring={}, folder=tmp_path)
        found = {}
        for problems in scorer([0, 1, 2, 3, 4, 5], counted.append):
            found |= problems
        return played, found, sum(counted)

    return run


def test_workers__are_handed_every_piece_once(play):
    played, found, images = play(lambda worker, part: None)
    assert sorted(played.scored) == [0, 1, 2, 3, 4, 5]
    assert found == {100 * part: "broken" for part in range(6)} and images == 60
    assert len(played.workers) == 2
    assert played.options["max_restarts"] == played.options["max_task_retries"] == ray_scorer.RESTARTS
    assert (played.options["num_cpus"], played.options["num_gpus"]) == (1, 0)


def test_workers__of_which_one_has_ended_for_good_leave_its_piece_to_the_others(play, capsys):
    played, found, _ = play(lambda worker, part: ActorDied("it was killed\nmore") if worker == 1 and part else None)
    assert sorted(played.scored) == [0, 1, 2, 3, 4, 5] and len(found) == 6
    said = capsys.readouterr().err
    assert said.count("a worker has ended and is not started again: it was killed\n") == 1


def test_workers__that_wait_take_the_piece_of_one_that_ends_last(play):
    """Of two workers the first has nothing left to do when the other one ends."""
    played, found, _ = play(lambda worker, part: ActorDied("killed") if (worker, part) == (1, 5) else None)
    assert sorted(played.scored) == [0, 1, 2, 3, 4, 5] and len(found) == 6


def test_workers__take_the_piece_of_one_that_does_not_answer(play, monkeypatch):
    """Its machine is gone, and there is no room for it elsewhere."""
    monkeypatch.setattr(ray_scorer, "_PATIENCE", 3)
    played, found, images = play(lambda worker, part: "is waited for" if (worker, part) == (1, 4) else None)
    assert sorted(played.scored) == [0, 1, 2, 3, 4, 5] and len(found) == 6 and images == 60


def test_workers__of_which_one_answers_late_count_its_piece_once(play, monkeypatch):
    monkeypatch.setattr(ray_scorer, "_PATIENCE", 3)
    late = []

    def calls(worker, part):
        if (worker, part) == (1, 4) and len(late) < 7:
            late.append(part)
            return "is waited for"
        return "is waited for" if (worker, part) == (0, 4) and len(late) < 9 else None

    _, found, images = play(calls)
    assert late and len(found) == 6 and images == 60


def test_workers__that_have_all_ended_are_told_in_one_line(play, capsys):
    with pytest.raises(
        RequestError, match="every worker of Ray has ended; the same command continues from what was scored"
    ):
        play(lambda worker, part: ActorDied("no memory") if part == 3 else None)


def test_workers__refuse_in_the_words_of_the_command(play):
    with pytest.raises(RequestError, match="a worker on far: there is no 'p'"):
        play(lambda worker, part: TaskFailed(RequestError("a worker on far: there is no 'p'")))
    with pytest.raises(TaskFailed):
        play(lambda worker, part: TaskFailed(ZeroDivisionError()))


def test_workers__stop_after_a_signal(play):
    with pytest.raises(Interrupted, match="the parts so far are kept") as stopped:
        play(lambda worker, part: None, stop=signal.SIGTERM)
    assert stopped.value.exit_status == 143


def test_workers__are_as_many_as_there_is_room_or_pieces_for(play, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert len(play(lambda worker, part: None, workers=None, cpus=4)[0].workers) == 4
    assert len(play(lambda worker, part: None, workers=None, cpus=40)[0].workers) == 6
    played, *_ = play(lambda worker, part: None, workers=None, cpus=40, gpus=3, device="cuda")
    assert len(played.workers) == 3 and played.options["num_gpus"] == 1
    with pytest.raises(RequestError, match="--gpus-per-worker 1: this machine has 0 for Ray"):
        play(lambda worker, part: None, device="cuda")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert len(play(lambda worker, part: None, workers=None, device="cuda")[0].workers) == 1, "a cluster may grow"


@pytest.mark.parametrize("shared", [True, False])
def test_scores__from_before_are_replaced_by_those_of_a_worker_of_another_folder(tmp_path, monkeypatch, shared):
    """The file here is damaged, or its features are missing, or the piece would not be scored."""
    here, there = tmp_path / "here", tmp_path / ("here" if shared else "there")
    here.mkdir()
    scores_file(here, 0).write_bytes(b"old")

    def scored(part):
        with replacing(scores_file(there, part)) as partial:
            partial.write_bytes(b"new %d" % part)

    def transferred(part):
        return {name.name: name.read_bytes() for name in [features_file(there, part, "t"), scores_file(there, part)]}

    played = Played(lambda worker, part: None if part is None else scored(part))
    start = played._start

    def with_files(*given):
        worker = start(*given)
        worker.files = SimpleNamespace(remote=lambda part: ("files", part))
        return worker

    for part in (0, 1):
        features_file(there, part, "t").parent.mkdir(exist_ok=True)
        features_file(there, part, "t").write_bytes(b"features")
    get = played.get
    monkeypatch.setattr(played, "_start", with_files)
    monkeypatch.setattr(played, "get", lambda answer: transferred(answer[1]) if answer[0] == "files" else get(answer))
    monkeypatch.setattr(ray_scorer, "connected", lambda: nullcontext(played))
    config = SelectConfig(teacher="t", pool=("p",), out="o", workers=1)
    scorer = RayScorer.__new__(RayScorer)
    request = SimpleNamespace(config=config, place=Place(torch.device("cpu"), torch.float32))
    vars(scorer).update(request=request, adapted=None, scoring={}, folder=here)
    assert len([*scorer([0, 1], lambda images: None)]) == 2
    assert [scores_file(here, part).read_bytes() for part in (0, 1)] == [b"new 0", b"new 1"]
    assert [features_file(here, part, "t").read_bytes() for part in (0, 1)] == [b"features"] * 2


def test_gpus__that_do_not_fit_the_device_are_refused(play):
    config = {"teacher": "t", "pool": ("p",), "out": "o"}
    for device, gpus, hint in (("cpu", 1.0, "give --device cuda"), ("cuda", 0.0, "give --device cpu")):
        request = SimpleNamespace(
            config=SelectConfig(**config, gpus_per_worker=gpus), place=Place(torch.device(device), torch.float32)
        )
        scorer = RayScorer.__new__(RayScorer)
        vars(scorer).update(request=request)
        with pytest.raises(RequestError, match=f"--gpus-per-worker {gpus:g} does not fit --device {device}; {hint}"):
            scorer._workers(Played(lambda worker, part: None), 6)


def test_engine_ray__without_ray_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ray_session, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"--engine ray needs ray: pip install '\.\[ray\]' in the checkout of dfkd"):
        ray_session.check_installed()
