"""Several students in one command (`--also`): each is the run that a command of its own gives, to the byte."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dfkd import open_run
from dfkd.distill import cohort
from dfkd.formats.run_folder import Run

QUICK = (
    *("--steps", 8, "--batch-size", 16, "--checkpoint-every", 3, "--log-every", 4, "--keep-weights", 4),
    *("--init", "none"),
)
DROPPING = "wide_resnet:depth=10,dropout=0.3"
STUDENTS = {
    "a": ("--loss", "kd", "ofd"),
    "b": ("--student", "cifar_resnet:depth=8,width=2", "--loss", "kd", "--ema", 0.8, "--reestimate", 2, "--lr", 0.05),
    "c": ("--student", f"{DROPPING},width=1", "--loss", "kd", "bss:samples=4,steps=2", "--student-seed", 3),
}
"""Of other networks, taps, rates and random numbers; the first one has no `--student`, but that of the lab."""
TIMES = ("seconds", "peak_memory_bytes", "files", "checksum", "together")


def also(folder, options):
    """The text of `--also` for a student."""
    return " ".join(map(str, (*options, "--out", folder)))


def what_is_written(run):
    """A run's files, without times."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]
    result = json.loads((run / "result.json").read_text())
    config = (run / "config.toml").read_text().replace(str(run.parent), "FOLDER")
    return {
        "config": [line for line in config.splitlines() if not line.startswith("checksum")],
        "rows": rows,
        "row names": [list(row) for row in rows],
        "result": {k: v for k, v in result.items() if k not in TIMES},
        "student": (run / "student.safetensors").read_bytes(),
        "kept": {file.name: file.read_bytes() for file in (run / "weights").iterdir()},
        "files": sorted(file.name for file in run.iterdir()),
    }


def state(run):
    return torch.load(run / "checkpoint" / "state.pt", map_location="cpu", weights_only=True)


def equal(ours, theirs):
    """Whether two nested states are the same to the bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs


@pytest.fixture(scope="module")
def alone(lab, selection, tmp_path_factory):
    """Each student by a command of its own."""
    folder = tmp_path_factory.mktemp("alone")
    for name, options in STUDENTS.items():
        assert lab.distill(selection, folder / name, *QUICK, "--test", lab.few_heldout, *options) == 0
    return folder


def distill_together(lab, selection, folder, *more):
    """All of them in one command."""
    others = [also(folder / name, options) for name, options in [*STUDENTS.items()][1:]]
    flags = (*QUICK, "--test", lab.few_heldout, *STUDENTS["a"], *more)
    return lab.distill(selection, folder / "a", *flags, "--also", *others)


def check_same(alone, folder):
    for name in STUDENTS:
        assert what_is_written(folder / name) == what_is_written(alone / name), name
        assert equal(state(folder / name), state(alone / name)), name


def test_sweep__gives_the_runs_of_single_commands_for_one_pass_of_the_teacher(
    lab, selection, alone, tmp_path, monkeypatch, capsys
):
    answers = []
    answer = cohort.answer
    monkeypatch.setattr(cohort, "answer", lambda *given: answers.append(0) or answer(*given))
    assert distill_together(lab, selection, tmp_path) == 0
    check_same(alone, tmp_path)
    assert len(answers) == 8, "one pass for each step, though the students read other features"
    result = json.loads((tmp_path / "b" / "result.json").read_text())
    assert result["together"] == 3
    said = capsys.readouterr().err
    assert f"student 3 of 3: {DROPPING},width=1" in said


def test_sweep__that_is_killed_between_two_checkpoints_goes_on_to_the_same_runs(
    lab, selection, alone, tmp_path, monkeypatch
):
    """The first student is then 3 steps ahead of the others, and waits for them."""
    save, saved = Run.save, []

    def killed(self, *given):
        saved.append(self.folder.name)
        if len(saved) == 5:
            raise RuntimeError("the power went out")
        save(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", killed)
        with pytest.raises(RuntimeError, match="the power"):
            distill_together(lab, selection, tmp_path)
    assert saved == ["a", "b", "c", "a", "b"]
    steps = [json.loads((tmp_path / name / "checkpoint" / "progress.json").read_text())["step"] for name in "abc"]
    assert steps == [6, 3, 3]
    assert distill_together(lab, selection, tmp_path) == 0
    check_same(alone, tmp_path)


def test_sweep__goes_on_with_runs_of_single_commands_and_trains_no_finished_one(
    lab, selection, alone, tmp_path, monkeypatch
):
    save = Run.save
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", lambda self, *given: (save(self, *given), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            lab.distill(selection, tmp_path / "c", *QUICK, "--test", lab.few_heldout, *STUDENTS["c"])
    assert lab.distill(selection, tmp_path / "a", *QUICK, "--test", lab.few_heldout, *STUDENTS["a"]) == 0
    written = (tmp_path / "a" / "student.safetensors").stat().st_mtime_ns
    assert distill_together(lab, selection, tmp_path) == 0
    check_same(alone, tmp_path)
    assert (tmp_path / "a" / "student.safetensors").stat().st_mtime_ns == written
    assert distill_together(lab, selection, tmp_path) == 0, "and says that all are complete"


def test_sweep__on_views_that_were_answered_beforehand(lab, selection, tmp_path):
    flags = (*QUICK, "--teacher-views", 2, "--loss", "kd")
    other = ("--lr", 0.05)
    assert lab.distill(selection, tmp_path / "a", *flags, "--also", also(tmp_path / "b", other)) == 0
    assert lab.distill(selection, tmp_path / "alone", *flags, *other) == 0
    ours, theirs = (what_is_written(tmp_path / name) for name in ("b", "alone"))
    assert ours["student"] == theirs["student"] and ours["result"] == theirs["result"]


def test_sweep__on_views_that_were_answered_beforehand_goes_on_with_each_student_alone(
    lab, selection, tmp_path, monkeypatch
):
    """The checkpoint of a student that drew no views itself has the next view of every image."""
    flags = (*QUICK, "--teacher-views", 3, "--batch-size", 48, "--loss", "kd", "--steps", 40)
    second = ("--student-seed", 1)
    assert lab.distill(selection, tmp_path / "whole", *flags, *second) == 0
    save, saved = Run.save, []

    def stopped(self, *given):
        save(self, *given)
        saved.append(self.folder.name)
        if len(saved) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", stopped)
    assert lab.distill(selection, tmp_path / "a", *flags, "--also", also(tmp_path / "b", second)) == 130
    assert lab.distill(selection, tmp_path / "b", *flags, *second) == 0
    assert equal(state(tmp_path / "b"), state(tmp_path / "whole"))
    assert what_is_written(tmp_path / "b")["student"] == what_is_written(tmp_path / "whole")["student"]


def test_student_seed__is_that_of_the_weights_alone_and_runs_of_one_name_are_its_seeds(lab, selection, tmp_path):
    flags = (*QUICK, "--loss", "kd", "--name", "row", "--log-every", 1)
    other = also(tmp_path / "5", ("--student-seed", 5, "--name", "row"))
    assert lab.distill(selection, tmp_path / "given", *flags, "--also", other) == 0
    entropies = [what_is_written(tmp_path / run)["rows"][0]["teacher_entropy"] for run in ("given", "5")]
    assert entropies[0] == entropies[1], "both see the same images"
    assert lab.dfkd("compare", tmp_path / "given", tmp_path / "5", "--out", tmp_path / "report.html") == 0
    assert lab.distill(selection, tmp_path / "0", *flags, "--student-seed", 0) == 0
    first, same = (load_file(tmp_path / run / "student.safetensors") for run in ("given", "0"))
    assert equal(first, same), "the seed of the run, if none is given"


MUTUAL = ("--loss", "kd", "dml:hard=0", "codistillation:burn_in=1,every=2", "--ema", 0.5)


def mutual(lab, selection, folder, *more):
    others = [also(folder / "b", ("--student-seed", 1)), also(folder / "c", ("--student-seed", 2, "--loss", "kd"))]
    return lab.distill(selection, folder / "a", *QUICK, *MUTUAL, *more, "--also", *others)


@pytest.fixture(scope="module")
def undisturbed(lab, selection, tmp_path_factory):
    """Two students that learn from each other and from a third one, which learns from the teacher alone."""
    folder = tmp_path_factory.mktemp("mutual")
    assert mutual(lab, selection, folder) == 0
    return folder


def test_mutual__students_end_nearer_to_each_other_than_alone(lab, selection, tmp_path):
    flags = ("--steps", 20, "--batch-size", 16, "--init", "none", "--lr", 0.1, "--loss", "kd:temperature=1")
    images = torch.from_numpy(np.load(lab.few)["images"]).permute(0, 3, 1, 2) / 127.5 - 1
    distances = []
    for name, loss in (("mutual", ["dml:hard=0"]), ("alone", [])):
        folder = tmp_path / name
        other = also(folder / "b", ("--student-seed", 1))
        assert lab.distill(selection, folder / "a", *flags, *loss, "--also", other) == 0
        with torch.no_grad():
            p, q = (open_run(folder / run).student(images).softmax(dim=1) for run in "ab")
        distances.append(float((p - q).abs().sum(dim=1).mean()))
    assert distances[0] < 0.8 * distances[1], distances


def test_mutual__one_that_learns_from_the_teacher_alone_is_the_run_of_a_single_command(
    lab, selection, undisturbed, tmp_path
):
    assert lab.distill(selection, tmp_path / "c", *QUICK, "--ema", 0.5, "--student-seed", 2, "--loss", "kd") == 0
    ours, theirs = what_is_written(undisturbed / "c"), what_is_written(tmp_path / "c")
    assert ours["student"] == theirs["student"] and ours["config"] == theirs["config"]
    assert "peers" in (undisturbed / "a" / "config.toml").read_text(), "the others decide what it becomes"


@pytest.mark.parametrize(("method", "call"), [("make_ready", 5), ("publish", 5)])
def test_mutual__killed_between_the_checkpoints_goes_on_to_the_same_runs(
    lab, selection, undisturbed, tmp_path, monkeypatch, method, call
):
    whole, calls = getattr(Run, method), []

    def killed(self, *given):
        calls.append(self)
        if len(calls) == call:
            raise RuntimeError("the power went out")
        whole(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Run, method, killed)
        with pytest.raises(RuntimeError, match="the power"):
            mutual(lab, selection, tmp_path)
    assert mutual(lab, selection, tmp_path) == 0
    for name in "abc":
        assert what_is_written(tmp_path / name) == what_is_written(undisturbed / name), name
        assert equal(state(tmp_path / name), state(undisturbed / name)), name


def test_mutual__a_student_whose_checkpoint_is_gone_is_named(lab, selection, tmp_path, monkeypatch, capsys):
    publish, calls = Run.publish, []

    def killed(self):
        calls.append(self)
        publish(self)
        if len(calls) == 3:
            raise RuntimeError("the power went out")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "publish", killed)
        with pytest.raises(RuntimeError, match="the power"):
            mutual(lab, selection, tmp_path)
    shutil.rmtree(tmp_path / "b" / "checkpoint")
    assert mutual(lab, selection, tmp_path) == 2
    assert "b has a checkpoint of step 0 and another student one of step 3" in capsys.readouterr().err


def test_graft__mixes_the_students_and_goes_on_to_the_same_runs_after_a_kill(
    lab, selection, tmp_path, monkeypatch, capsys
):
    def grafted(folder, *more):
        return lab.distill(
            selection, folder / "a", *QUICK, "--loss", "kd", *more, "--also", also(folder / "b", ("--student-seed", 1))
        )

    weights = {}
    for name, more in (("mixed", ("--graft", 2)), ("alone", ())):
        assert grafted(tmp_path / name, *more) == 0
        equal = "--graft makes two students of one rate and loss equal; give one of them another --lr in --also"
        assert (equal in capsys.readouterr().err) == (name == "mixed")
        weights[name] = [load_file(tmp_path / name / run / "student.safetensors")["conv1.weight"] for run in "ab"]
    distances = {name: float((a - b).norm()) for name, (a, b) in weights.items()}
    assert distances["mixed"] < 0.6 * distances["alone"]
    assert "peers" in (tmp_path / "mixed" / "a" / "config.toml").read_text()
    with monkeypatch.context() as patch:
        publish = Run.publish
        patch.setattr(Run, "publish", lambda self: (publish(self), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            grafted(tmp_path / "again", "--graft", 2)
    assert grafted(tmp_path / "again", "--graft", 2) == 0
    for run in "ab":
        assert what_is_written(tmp_path / "again" / run) == what_is_written(tmp_path / "mixed" / run)


@pytest.mark.parametrize(
    ("flags", "texts", "said"),
    [
        ((), ["--batch-size 8 --out b"], "--batch-size is not an option in which students of one command may differ"),
        ((), ["--lr 0.1"], "--also '--lr 0.1' lacks --out"),
        ((), ["lenet5 --out b"], "--also 'lenet5 --out b' has no option"),
        ((), ["--lr fast --out b"], "--lr: 'fast' is not a number"),
        ((), ["--lr --out b"], "--lr needs a value"),
        ((), ["--lr 1 2 --out b"], "--lr needs one value"),
        ((), ["--lr 1 --lr 2 --out b"], "--lr is given twice"),
        ((), ["--lr -1 --out b"], "--lr -1.0 is not at least 0"),
        ((), ["--loss 'kd --out b"], "cannot be read"),
        ((), ["--name b --out b"], "students 1 and 2 are the same"),
        ((), ["--lr 0.1 --out {a}"], "is given to students 1 and 2"),
        ((), ["--init teacher --out b"], "student 2 would be taught differently from student 1 (layers fitted"),
        (("--source", "dafl"), ["--lr 0.1 --out b"], "--source dafl learns from its student"),
        (("--batches", "hardest"), ["--lr 0.1 --out b"], "--batches hardest follows its student"),
        (("--loss", "dml"), [], "--loss dml learns from other students, and there is none"),
        (("--graft", 2), [], "--graft 2 takes filters from other students, and there is none"),
        (
            ("--graft", 2),
            ["--student cifar_resnet:depth=8,width=2 --out b"],
            "--graft 2 mixes the convolutions of one architecture",
        ),
        (("--loss", "kd"), ["--loss dml --loss kd --out b"], "--loss is given twice"),
        ((), ["--student wide_resnet:width=1 --out b"], "depth"),
    ],
)
def test_also__refuses_in_one_line(lab, selection, tmp_path, monkeypatch, capsys, flags, texts, said):
    monkeypatch.chdir(tmp_path)
    texts = [text.format(a=tmp_path / "a") for text in texts]
    more = ("--also", *texts) if texts else ()
    assert lab.distill(selection, tmp_path / "a", *QUICK, *flags, *more) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dfkd distill: ")]
    assert said in errors[-1]
    assert not [*tmp_path.iterdir()], "nothing is written"
