"""`dfkd distill` with the options that change what is trained on, what is begun with and what is written."""

import json
import tomllib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dfkd.distill import trainer
from dfkd.distill.init import reconstruct
from dfkd.distill.trainer import Trainer
from dfkd.formats.run_folder import Run
from dfkd.models.load import load_model
from dfkd.training.hardest import HardestOrder

QUICK = ("--steps", 12, "--batch-size", 16, "--checkpoint-every", 5, "--log-every", 4)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def student(run):
    return load_file(run / "student.safetensors")


def content(run):
    return tomllib.loads((run / "config.toml").read_text())["content"]["options"]


def same(ours, theirs, names=None):
    return {name for name in ours if torch.equal(ours[name], theirs[name])} == set(names or ours)


@pytest.fixture(scope="module")
def plain(lab, selection, tmp_path_factory):
    """A run without any of them."""
    run = tmp_path_factory.mktemp("runs") / "plain"
    assert lab.distill(selection, run, *QUICK) == 0
    return run


@pytest.fixture(scope="module")
def averaged(lab, selection, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "averaged"
    assert lab.distill(selection, run, *QUICK, "--ema", 0.7, "--test", lab.heldout) == 0
    return run


def test_the_average_is_written_and_measured_and_the_training_is_the_same(lab, plain, averaged, tmp_path):
    state = torch.load(averaged / "checkpoint" / "state.pt", map_location="cpu", weights_only=True)
    written = student(averaged)
    assert same(state["student"], student(plain))
    floats = [name for name in state["student"] if state["student"][name].is_floating_point()]
    means = dict(zip(floats, state["average"]["mean"], strict=False))  # those of the losses follow
    assert len(state["average"]["mean"]) > len(floats)
    assert same({name: written[name] for name in floats}, means)
    assert not any(torch.equal(written[name], state["student"][name]) for name in floats)
    figures = tmp_path / "figures.json"
    assert lab.dfkd("evaluate", "--model", averaged, "--data", lab.heldout, "--json", figures) == 0
    result = json.loads((averaged / "result.json").read_text())
    assert json.loads(figures.read_text())["top1"] == pytest.approx(result["top1"])


def test_statistics_are_reestimated_with_the_weights_that_are_written(lab, selection, averaged, tmp_path, monkeypatch):
    views = []
    reestimate = trainer.reestimate
    monkeypatch.setattr(trainer, "reestimate", lambda module, given: reestimate(module, _kept(given, views)))
    assert lab.distill(selection, tmp_path / "run", *QUICK, "--ema", 0.7, "--reestimate", 3) == 0
    ours, theirs = student(tmp_path / "run"), student(averaged)
    assert same(ours, theirs, {name for name in ours if not name.endswith(STATISTICS)})
    assert ours["bn1.num_batches_tracked"] == 3
    assert [len(view) for view in views] == [16] * 3
    first = torch.cat([torch.nn.functional.conv2d(view, ours["conv1.weight"], padding=1).double() for view in views])
    torch.testing.assert_close(ours["bn1.running_mean"].double(), first.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["images_seen"], result["teacher_forwards"]) == (12 * 16, 12 * 16 + lab.fitted_on)


def _kept(views, into):
    for view in views:
        into.append(view.cpu().clone())
        yield view


def test_killed_while_statistics_are_reestimated(lab, selection, tmp_path, monkeypatch):
    flags = (*QUICK, "--ema", 0.7, "--reestimate", 2, "--loss", "kd", "--init", "none")
    assert lab.distill(selection, tmp_path / "whole", *flags) == 0
    reestimate = trainer.reestimate

    def killed(module, views):
        reestimate(module, views)
        raise SystemExit("killed")

    monkeypatch.setattr(trainer, "reestimate", killed)
    with pytest.raises(SystemExit):
        lab.distill(selection, tmp_path / "run", *flags)
    assert not (tmp_path / "run" / "student.safetensors").exists()
    monkeypatch.setattr(trainer, "reestimate", reestimate)
    monkeypatch.setattr(Trainer, "advance", lambda self: pytest.fail("a step was made"))  # every step was done
    assert lab.distill(selection, tmp_path / "run", *flags) == 0
    assert same(student(tmp_path / "whole"), student(tmp_path / "run"))


def test_a_student_begins_as_its_teacher(lab, selection, tmp_path, capsys):
    wide = ("--student", "cifar_resnet:depth=8", "--init", "teacher", "--lr", 0, "--loss", "kd")
    assert lab.distill(selection, tmp_path / "run", *QUICK, *wide) == 0
    assert "15 of the student's 15 layers begin as the teacher's" in capsys.readouterr().err
    ours, theirs = student(tmp_path / "run"), load_file(lab.folder / "teacher.safetensors")
    assert same(ours, theirs, {name for name in ours if not name.endswith(STATISTICS)})


def test_the_layers_are_fitted_on_images_of_the_selection_before_the_first_step_alone(
    lab, selection, plain, tmp_path, monkeypatch
):
    seen, whole = [], ("--no-flip", "--crop-padding", 0, "--crop-area", 1)
    fit = reconstruct.reconstruct

    def keep(student, teacher, view, channels):
        seen.append((view.shape, view.unique(dim=0).shape[0]))
        return fit(student, teacher, view, channels)

    monkeypatch.setattr(reconstruct, "reconstruct", keep)
    assert lab.distill(selection, tmp_path / "run", *QUICK, *whole) == 0
    assert seen == [((lab.fitted_on, 1, 16, 16), lab.fitted_on)]  # fewer than the 400 images that are selected
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "student.safetensors").unlink()
    assert lab.distill(selection, tmp_path / "run", *QUICK, *whole) == 0
    assert len(seen) == 1  # it went on from the checkpoint of the last step


def test_cut_images_are_no_stored_rows_and_the_teacher_sees_what_the_student_sees(
    lab, selection, plain, tmp_path, monkeypatch
):
    seen = []
    teach = Trainer.teach

    def keep(self, view, batch):
        outputs = teach(self, view, batch)
        seen.append((outputs.rows, outputs.view is view))
        return outputs

    monkeypatch.setattr(Trainer, "teach", keep)
    assert lab.distill(selection, tmp_path / "run", *QUICK, "--cutmix", 1) == 0
    assert seen == [(None, True)] * 12
    assert not same(student(plain), student(tmp_path / "run"))


def test_windows_are_what_the_teacher_answers_for_too(lab, selection, plain, tmp_path, monkeypatch):
    seen = []
    teach = Trainer.teach

    def keep(self, view, batch):
        outputs = teach(self, view, batch)
        seen.append(outputs.view is view and outputs.rows is not None)  # a window is still of one stored image
        return outputs

    monkeypatch.setattr(Trainer, "teach", keep)
    assert lab.distill(selection, tmp_path / "half", *QUICK, "--crop-area", 0.5) == 0
    assert seen == [True] * 12
    assert not same(student(plain), student(tmp_path / "half"))
    for area in (0, 1.5):
        assert lab.distill(selection, tmp_path / "no", *QUICK, "--crop-area", area) == 2


def test_the_hardest_images_are_those_where_the_student_was_farthest_from_the_teacher(lab, tmp_path, monkeypatch):
    assert lab.select(tmp_path / "s", "--pool", lab.few, "--count", 100) == 0
    batches, logits = [], []
    draw, teach, answer = HardestOrder.rows, Trainer.teach, Trainer.answer

    def kept(function, into):
        def keep(self, *given):
            into.append(function(self, *given))
            return into[-1]

        return keep

    monkeypatch.setattr(HardestOrder, "rows", kept(draw, batches))
    monkeypatch.setattr(Trainer, "teach", kept(teach, logits))
    monkeypatch.setattr(Trainer, "answer", kept(answer, logits))
    flags = ("--batch-size", 25, "--batches", "hardest:share=0.5", "--loss", "kd", "--init", "none")
    assert lab.distill(tmp_path / "s", tmp_path / "run", *QUICK, *flags) == 0
    latest = np.full(100, np.nan)
    for step, rows in enumerate(batches):
        if step >= 4 and step % 2 == 0:  # a round of two batches
            hardest = np.argsort(-latest)[:50]
            assert {*rows, *batches[step + 1]} == {*hardest}
        t, s = (outputs.logits.detach().double().cpu().numpy() / 4 for outputs in logits[2 * step : 2 * step + 2])
        log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (t, s))
        latest[rows] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    assert len(batches) == 12 and len({tuple(sorted(rows)) for rows in batches}) == 12


def test_what_is_on_decides_the_run_and_what_is_off_leaves_earlier_runs_as_they_are(
    lab, selection, plain, averaged, capsys
):
    assert {"cutmix", "ema", "batchnorm", "dropout", "reestimate"} & content(plain).keys() == set()
    assert content(averaged) == {**content(plain), "ema": 0.7}
    changes = (("--cutmix", 1, 1.0), ("--ema", 0.5, 0.5), ("--batchnorm", "kept", "kept"), ("--reestimate", 2, 2))
    changes = (*changes, ("--dropout", "off", "off"))
    for flag, value, shown in changes:
        assert lab.distill(selection, plain, *QUICK, flag, value) == 2
        said = capsys.readouterr().err
        assert "holds another run: " in said and f"options.{flag[2:].replace('-', '_')} (None, now {shown})" in said
    assert content(plain)["init"] == "teacher"
    assert lab.distill(selection, plain, *QUICK, "--init", "none") == 2
    assert "options.init (teacher, now None)" in capsys.readouterr().err


@pytest.mark.parametrize(("statistics", "agree"), [("kept", True), ("batch", False)])
def test_statistics_that_are_kept_normalize_in_training(
    lab, selection, plain, tmp_path, monkeypatch, statistics, agree
):
    answer, seen = Trainer.answer, []

    def watched(self, view):
        found = answer(self, view)
        seen.append((view.detach().clone(), found.logits.detach().float().clone()))
        return found

    monkeypatch.setattr(Trainer, "answer", watched)
    flags = ("--student", plain, "--batchnorm", statistics, "--precision", "fp32")
    assert lab.distill(selection, tmp_path / "run", *QUICK, *flags) == 0
    view, logits = seen[0]
    with torch.no_grad():
        expected = load_model(str(plain)).module.eval()(view)
    assert torch.allclose(logits, expected, atol=1e-4) == agree
    ours, begun = student(tmp_path / "run"), student(plain)
    kept = {name for name in ours if name.endswith(STATISTICS)}
    assert {name for name in ours if torch.equal(ours[name], begun[name])} == (kept if agree else set())


@pytest.mark.parametrize("dropout", ["on", "off"])
def test_dropout_changes_the_students_answers_in_training_only_where_it_is_on(
    lab, selection, tmp_path, monkeypatch, dropout
):
    (tmp_path / f"dropping_{dropout}.py").write_text(
        "from torch import nn\n"
        "def net(num_classes: int = 10):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    reply, same = Trainer.reply, []

    def watched(self, view):
        found, module = reply(self, view), self.student.module
        modes = [(layer, layer.training) for layer in module.modules()]
        with torch.no_grad():
            same.append(torch.allclose(found.logits.float(), module.eval()(view), atol=1e-5))
        for layer, mode in modes:
            layer.training = mode
        return found

    monkeypatch.setattr(Trainer, "reply", watched)
    flags = (*QUICK, "--student", f"dropping_{dropout}.net", "--dropout", dropout, "--precision", "fp32")
    assert lab.distill(selection, tmp_path / "run", *flags) == 0
    assert same and all(same) == (dropout == "off") == any(same)


def test_statistics_that_are_kept_go_on_to_the_same_run_after_a_kill(lab, selection, plain, tmp_path, monkeypatch):
    save, flags = Run.save, (*QUICK, "--student", plain, "--batchnorm", "kept")
    assert lab.distill(selection, tmp_path / "whole", *flags) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", lambda self, *given: (save(self, *given), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            lab.distill(selection, tmp_path / "run", *flags)
    assert lab.distill(selection, tmp_path / "run", *flags) == 0
    assert same(student(tmp_path / "whole"), student(tmp_path / "run"))


def test_statistics_are_kept_or_replaced(lab, selection, plain, tmp_path, capsys):
    flags = (*QUICK, "--student", plain, "--batchnorm", "kept", "--reestimate", 2)
    assert lab.distill(selection, tmp_path / "run", *flags) == 2
    said = "--batchnorm kept keeps the student's BatchNorm statistics, and --reestimate 2 replaces them; leave one out"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--reestimate", 9), ("--batchnorm", "kept")])
def test_without_batch_normalization_there_are_no_statistics(lab, selection, tmp_path, capsys, monkeypatch, option):
    (tmp_path / "flat_nets.py").write_text(
        "from torch import nn\n"
        "def flat(num_classes: int = 10):\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(392, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert lab.distill(selection, tmp_path / "run", *QUICK, "--student", "flat_nets.flat", *option) == 2
    said = capsys.readouterr().err
    assert f"{' '.join(map(str, option))} changes nothing: the student has no BatchNorm statistics" in said


def test_what_becomes_of_dropped_classes_is_no_matter_where_none_is_dropped(lab, selection, tmp_path, capsys):
    loss = ("--loss", "kd:dropped=renormalize", "--init", "none")
    assert lab.distill(selection, tmp_path / "a", *QUICK, *loss) == 0
    assert "note: a loss's dropped=... changes nothing without --class-dropping" in capsys.readouterr().err
    assert lab.distill(selection, tmp_path / "b", *QUICK, *loss, "--class-dropping", 0.05) == 0
    assert "changes nothing" not in capsys.readouterr().err
    assert not same(student(tmp_path / "a"), student(tmp_path / "b"))
