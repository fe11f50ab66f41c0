"""`dfkd distill --teacher-views`: the teacher answers before the training, and not in it."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dfkd.distill.teacher_cache import views as teacher_views
from dfkd.distill.trainer import Trainer
from dfkd.models.classifier import Classifier
from dfkd.models.load import load_model
from dfkd.system import checked_parquet, console

QUICK = ("--loss", "kd", "--steps", 20, "--batch-size", 8, "--checkpoint-every", 7, "--log-every", 4, "--init", "none")


@pytest.fixture(scope="module")
def selection(lab, tmp_path_factory):
    """100 images."""
    out = tmp_path_factory.mktemp("views") / "selection"
    assert lab.select(out, "--pool", lab.few, "--count", 100) == 0
    return out


@pytest.fixture(autouse=True)
def small_files(monkeypatch, tmp_path):
    """Four files a view, in a cache of the test's own."""
    monkeypatch.setattr(teacher_views, "PART_ROWS", 25)
    monkeypatch.setattr(teacher_views, "BATCH", 13)
    monkeypatch.setattr(teacher_views, "CHECKED", 32)
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def forwards(monkeypatch):
    """How many images the teacher has answered for, in every call but those of its health check."""
    monkeypatch.setattr("dfkd.models.classifier.check_health", lambda *_: None)
    counts = []
    outputs = Classifier.outputs

    def counted(self, view):
        counts.append(len(view))
        return outputs(self, view)

    monkeypatch.setattr(Classifier, "outputs", counted)
    return counts


def student(run):
    return load_file(run / "student.safetensors")


def same(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def lessons(monkeypatch):
    """(trainer, batch, view, teacher's outputs) of every step; the outputs are the teacher's, asked again."""
    seen = []
    lesson = Trainer.lesson

    def kept(self, batch):
        view, theirs = lesson(self, batch)
        torch.testing.assert_close(self.teacher.answer(view).logits, theirs.logits, rtol=2e-3, atol=2e-3)
        assert torch.equal(theirs.view, view) and torch.equal(theirs.rows.cpu(), batch.rows)
        seen.append((batch, view))
        return view, theirs

    monkeypatch.setattr(Trainer, "lesson", kept)
    return seen


def test_the_kept_answers_are_those_of_the_teacher_to_the_very_views_that_are_learnt_from(
    lab, selection, tmp_path, monkeypatch, lessons
):
    monkeypatch.setattr(Trainer, "teach", lambda *given: pytest.fail("the teacher was run in training"))
    passes = ("--batch-size", 10, "--steps", 48)  # 4.8 of the 100 images, no image twice in a batch
    assert lab.distill(selection, tmp_path / "run", *QUICK, *passes, "--teacher-views", 3) == 0
    shown = {}
    for batch, view in lessons:
        for row, one in zip(batch.rows.tolist(), view, strict=True):
            shown.setdefault(row, []).append(one.cpu().numpy().tobytes())
    assert len(lessons) == 48 and len(shown) == 100
    # three views of each image, and then the first again
    assert all(len({*views[:3]}) == len({*views}) for views in shown.values())
    assert sum(len({*views}) == 3 for views in shown.values()) > 85  # of 50 crops and flips; two draws may be alike
    assert all(views[3] == views[0] for views in shown.values())


def test_seeds_share_the_answers_and_more_views_ask_for_the_new_ones_alone(lab, selection, tmp_path, forwards, capsys):
    checked = teacher_views.CHECKED
    assert lab.distill(selection, tmp_path / "one", *QUICK, "--teacher-views", 2) == 0
    assert sum(forwards) == 2 * 100 + checked and len(forwards) == 2 * 8 + 1
    assert "differ from the recorded ones by at most 0.00" in capsys.readouterr().err
    for number, (flags, asked) in enumerate(
        [(("--teacher-views", 2, "--seed", 1), 0), (("--teacher-views", 3), 100), (("--teacher-views", 1), 0)]
    ):
        forwards.clear()
        assert lab.distill(selection, tmp_path / f"run{number}", *QUICK, *flags) == 0
        assert sum(forwards) == asked + checked
        assert ("the teacher is not run" in capsys.readouterr().err) == (asked == 0)
    assert not same(student(tmp_path / "one"), student(tmp_path / "run0"))
    # another crop is another view
    forwards.clear()
    assert lab.distill(selection, tmp_path / "run", *QUICK, "--teacher-views", 1, "--crop-padding", 1) == 0
    assert sum(forwards) == 100 + checked


def test_the_result_says_what_the_teacher_was_asked(lab, selection, tmp_path):
    fitted = ("--teacher-views", 2, "--test", lab.heldout, "--init", "teacher")
    assert lab.distill(selection, tmp_path / "run", *QUICK, *fitted) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["teacher_forwards"], result["images_seen"]) == (200 + lab.fitted_on, 160)
    assert result["test_images"] == 400
    assert "teacher_views = 2" in (tmp_path / "run" / "config.toml").read_text()


def test_interrupted_in_training_and_resumed_it_is_the_same_student(lab, selection, tmp_path, monkeypatch):
    flags = (*QUICK, "--teacher-views", 3, "--batches", "hardest:share=0.3", "--class-dropping", 0.05)
    assert lab.distill(selection, tmp_path / "whole", *flags) == 0
    advance = Trainer.advance

    def stopped(self):
        if self.step == 16:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", stopped)
    assert lab.distill(selection, tmp_path / "run", *flags) == 143
    monkeypatch.setattr(Trainer, "advance", advance)
    assert lab.distill(selection, tmp_path / "run", *flags) == 0
    assert same(student(tmp_path / "whole"), student(tmp_path / "run"))


def test_interrupted_while_the_teacher_answers(lab, selection, tmp_path, monkeypatch, forwards, capsys):
    bar = console.Progress.advance

    def stopped(self, units, note=""):
        bar(self, units, note)
        if len(forwards) == 5:  # in the third file
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(console.Progress, "advance", stopped)
    assert lab.distill(selection, tmp_path / "run", *QUICK, "--teacher-views", 1) == 130
    assert "the answers so far are kept" in capsys.readouterr().err
    assert len(forwards) == 5 and len([*(tmp_path / "cache").rglob("view-*.parquet")]) == 2
    monkeypatch.setattr(console.Progress, "advance", bar)
    forwards.clear()
    assert lab.distill(selection, tmp_path / "run", *QUICK, "--teacher-views", 1) == 0
    assert sum(forwards) == 50 + teacher_views.CHECKED


def test_distill__takes_a_teacher_whose_logits_float16_cannot_hold(lab, selection, tmp_path):
    teacher = load_model(lab.teacher)
    state = teacher.module.state_dict()
    for name in ("linear.weight", "linear.bias"):
        state[name] *= 1e-10
    save_file(state, tmp_path / "faint.safetensors")
    faint = ("--teacher", f"{teacher.architecture}@{tmp_path / 'faint.safetensors'}", "--normalize", "0.5/0.5")
    student = ("--student", "cifar_resnet:depth=8,width=4", "--precision", "fp32", "--samples", selection)
    assert lab.dfkd("distill", *faint, *student, "--out", tmp_path / "run", *QUICK, "--teacher-views", 1) == 0


def test_a_damaged_file_is_made_again_and_the_answers_of_another_teacher_are_refused(
    lab, selection, tmp_path, forwards, capsys
):
    flags = (*QUICK, "--teacher-views", 1)
    assert lab.distill(selection, tmp_path / "run", *flags) == 0
    first, *others = sorted((tmp_path / "cache").rglob("view-*.parquet"))
    first.write_bytes(first.read_bytes()[:-100])
    forwards.clear()
    assert lab.distill(selection, tmp_path / "again", *flags) == 0
    assert sum(forwards) == 25 + teacher_views.CHECKED
    assert same(student(tmp_path / "run"), student(tmp_path / "again"))
    for file in (first, *others):
        stored = checked_parquet.read_columns(file, ("crops", "logits"))
        checked_parquet.write_columns(file, stored | {"logits": np.roll(stored["logits"], 1, axis=1)})
    capsys.readouterr()
    assert lab.distill(selection, tmp_path / "third", *flags) == 2
    said = capsys.readouterr().err
    assert "differ from its present outputs" in said and str(first.parent) in said
    for file in (first, *others):
        stored = checked_parquet.read_columns(file, ("crops", "logits"))
        checked_parquet.write_columns(file, stored | {"logits": np.full_like(stored["logits"], np.nan)})
    assert lab.distill(selection, tmp_path / "fourth", *flags) == 2
    assert "differ from its present outputs by nan" in capsys.readouterr().err
    # fewer rows than images, as another version might have cut them
    stored = checked_parquet.read_columns(first, ("crops", "logits"))
    for file in (first, *others):
        checked_parquet.write_columns(file, {name: values[:12] for name, values in stored.items()})
    assert lab.distill(selection, tmp_path / "fifth", *flags) == 0
    assert same(student(tmp_path / "run"), student(tmp_path / "fifth"))


def test_several_selections_keep_their_answers_apart(lab, selection, tmp_path, forwards, lessons):
    assert lab.select(tmp_path / "other", "--pool", lab.few, "--count", 40, "--method", "random") == 0
    forwards.clear()
    assert lab.distill(tmp_path / "other", tmp_path / "run", *QUICK, "--teacher-views", 1) == 0
    both = ("--samples", selection, tmp_path / "other", "--weights", 1, 3)
    assert lab.distill(tmp_path / "other", tmp_path / "both", *QUICK, "--teacher-views", 1, *both) == 0
    assert sum(forwards) == 40 + 100 + 2 * teacher_views.CHECKED
    assert max(batch.rows.max() for batch, _ in lessons) >= 100  # the second one's rows


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--loss", "kd", "explicit:0.5"), "records the teacher's logits, and explicit needs more;"),
        (("--loss", "kd", "bss"), "records the teacher's logits, and bss needs more;"),
        (("--crop-padding", 0, "--no-flip"), "--teacher-views 2 are all the same without --crop-padding and --flip"),
        (("--mixup", 1), "leave out --mixup, --cutmix, --color-jitter and --crop-area"),
        (("--cutmix", 1), "leave out --mixup, --cutmix, --color-jitter and --crop-area"),
        (("--crop-area", 0.5), "leave out --mixup, --cutmix, --color-jitter and --crop-area"),
        (("--source", "dfad"), "records outputs for stored images"),
        (("--shard-teacher",), "needs the whole teacher in each process; leave out --shard-teacher"),
        (("--teacher-views", -1), "--teacher-views -1 is not at least 0"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_anything_is_done(lab, selection, tmp_path, capsys, flags, said):
    quick = QUICK[2:] if "--loss" in flags else QUICK
    assert lab.distill(selection, tmp_path / "run", *quick, "--teacher-views", 2, *flags) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and not [*tmp_path.rglob("view-*")]


TIED = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self, num_classes=80, in_channels=1):
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([10.0] * 31 + [5.0] * 20 + [-10.0] * 29))

    def forward(self, x):
        last_bits = 1e-4 * torch.sin(torch.arange(80, device=x.device) * len(x))
        return self.levels + last_bits + 0 * x.mean((1, 2, 3))[:, None]
"""


def test_classes_that_are_all_but_equal_are_no_other_teacher(lab, tmp_path, monkeypatch, capsys):
    """Of 20 of them one is kept; which one hangs on the last bits, and these on the size of the batch."""
    (tmp_path / "tied_net.py").write_text(TIED)
    monkeypatch.syspath_prepend(tmp_path)
    teacher = ("--teacher", "tied_net.Tied", "--precision", "fp32")
    pool = ("--pool", lab.few, "--count", 100, "--method", "random", "--out", tmp_path / "s")
    assert lab.dfkd("select", *teacher, "--normalize", "0.5/0.5", "--image-size", 16, *pool) == 0
    run = ("--student", "cifar_resnet:depth=8,width=4", "--samples", tmp_path / "s", "--out", tmp_path / "run")
    assert lab.dfkd("distill", *teacher, *run, *QUICK, "--teacher-views", 1) == 0
    assert "differ from the recorded ones by at most 0.00" in capsys.readouterr().err
