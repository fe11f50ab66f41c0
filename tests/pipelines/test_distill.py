import json
import os
import signal
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dfkd.config.stages.shared import Input
from dfkd.data import open_pool
from dfkd.distill.trainer import Trainer
from dfkd.formats.shards import Shards
from dfkd.models import cifar_resnet
from dfkd.models.load import load_model
from dfkd.system.errors import RequestError
from dfkd.system.memory import forget_peak_memory, peak_memory_bytes

QUICK = ("--steps", 12, "--batch-size", 16, "--checkpoint-every", 5, "--log-every", 4)
PLAIN = (*QUICK, "--loss", "kd", "--init", "none")
TWO_STEPS = ("--steps", 2, "--batch-size", 8)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(lab, selection, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert lab.distill(selection, run, *QUICK, "--test", lab.heldout) == 0
    return run


def test_the_folder_holds_what_the_contract_says(lab, selection, finished):
    files = sorted(str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file())
    assert files == [
        "checkpoint/progress.json",
        "checkpoint/state.pt",
        "config.toml",
        "metrics.jsonl",
        "result.json",
        "student.safetensors",
    ]
    result = json.loads((finished / "result.json").read_text())
    student = load_model(str(finished))
    expected = {
        "steps": 12,
        "images_seen": 192,
        "teacher_forwards": 192 + lab.fitted_on,  # of the training, and of what the student's layers were fitted on
        "test_images": 400,
        "source": "selection",
        "selection_fingerprint": json.loads((selection / "manifest.json").read_text())["fingerprint"],
        "seed": 0,
        "student_parameters": sum(p.numel() for p in student.module.parameters()),
        "name": "statistics | kd ofd",
    }
    assert {key: result[key] for key in expected} == expected
    assert 0 < result["seconds"] < 600
    assert result["peak_memory_bytes"] > 1e7
    rows = metrics(finished)
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert {"loss", "kd", "ofd", "agreement", "learning_rate", "images_per_second"} <= rows[0].keys()
    for row in rows:
        assert row["loss"] == pytest.approx(row["kd"] + 0.001 * row["ofd"], rel=1e-5)
    config = tomllib.loads((finished / "config.toml").read_text())
    assert config["model"]["architecture"] == "cifar_resnet:depth=8,in_channels=1,num_classes=10,width=4"
    (selected,) = config["content"]["selected"]
    assert selected == "method=statistics:weight=0.0 count=400 class_dropping=0.05 balance=class"
    # the connectors of ofd learn with the student and are no part of it
    assert set(load_file(finished / "student.safetensors")) == set(cifar_resnet(depth=8, width=4).state_dict())


def test_run__as_a_student_of_other_classes_is_refused_with_the_text_that_works(finished):
    with pytest.raises(RequestError, match=r"10 classes, the teacher 4; write NAME@WEIGHTS without num_classes"):
        load_model(str(finished), classes=4, new_classifier=True)
    with pytest.raises(RequestError, match=r"10 classes, the teacher 4$"):  # it is to answer, not to learn
        load_model(str(finished), classes=4)
    text = f"cifar_resnet:depth=8,width=4@{finished / 'student.safetensors'}"
    assert load_model(text, classes=4, new_classifier=True).classes == 4


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot forget its peak")
def test_the_memory_is_that_of_the_run_and_not_of_what_the_process_did_before(lab, selection, tmp_path):
    forget_peak_memory(torch.device("cpu"))  # that of the tests before this one
    before = peak_memory_bytes(torch.device("cpu"))
    torch.ones(2**27)  # half a gigabyte
    assert peak_memory_bytes(torch.device("cpu")) > before + 2**28
    assert lab.distill(selection, tmp_path / "run", *TWO_STEPS) == 0
    held = json.loads((tmp_path / "run" / "result.json").read_text())["peak_memory_bytes"]
    assert held < before + 2**28


def test_the_accuracy_is_that_of_the_student_that_was_saved(lab, finished, tmp_path):
    result = json.loads((finished / "result.json").read_text())
    held = np.load(lab.heldout)
    data = open_pool([lab.heldout], image_size=16, channels=1)
    pixels = torch.from_numpy(data.images(np.arange(len(data))).pixels)

    def predictions(model):
        with torch.no_grad():
            return model.module.eval()(model.preprocess(pixels)).argmax(dim=1).numpy()

    ours, theirs = predictions(load_model(str(finished))), predictions(load_model(lab.teacher, Input("0.5/0.5")))
    assert result["top1"] == pytest.approx((ours == held["labels"]).mean(), abs=0.002)
    assert result["teacher_top1"] == pytest.approx((theirs == held["labels"]).mean(), abs=0.002)
    assert result["agreement"] == pytest.approx((ours == theirs).mean(), abs=0.002)

    figures = tmp_path / "figures.json"
    again = ("--teacher", lab.teacher, "--json", figures)
    assert lab.dfkd("evaluate", "--model", finished, "--data", lab.heldout, *again) == 0
    measured = json.loads(figures.read_text())
    for key in ("top1", "top5", "agreement", "teacher_top1", "calibration_error"):
        assert measured[key] == pytest.approx(result[key], abs=1e-6)
    shares = [p for p in measured["per_class"] if p is not None]
    counts = np.bincount(held["labels"], minlength=10)
    assert np.dot(shares, counts) / counts.sum() == pytest.approx(measured["top1"])


def test_batches_even_over_the_teachers_classes(lab, selection, tmp_path, monkeypatch):
    predictions = Shards(selection).column("prediction")
    teach, seen = Trainer.teach, []

    def keep(self, view, batch):
        seen.append(np.bincount(predictions[batch.rows], minlength=10))
        return teach(self, view, batch)

    monkeypatch.setattr(Trainer, "teach", keep)
    assert lab.distill(selection, tmp_path / "run", *PLAIN, "--batches", "classes:each=4") == 0
    present = np.flatnonzero(np.bincount(predictions, minlength=10))
    for counts in seen:  # 16 images: 4 turns of 4 over the classes that there are
        assert set(counts[present] % 4) == {0} and counts.max() - counts[present].min() <= 4
    assert sum(seen)[present].min() > 0


def test_the_default_losses_are_those_that_the_networks_allow(lab, selection, tmp_path, monkeypatch, capsys):
    (tmp_path / "other_nets.py").write_text(
        "from torch import nn\n"
        "def flat(num_classes: int = 10, in_channels: int = 1):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, num_classes))\n"
        "def patches(num_classes: int = 10):\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 4, 4), nn.Flatten(), nn.GELU(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for number, (flags, losses) in enumerate(
        [
            ((), "kd ofd"),
            (("--student", "wide_resnet:depth=10,width=1"), "kd ofd"),
            (("--student", "other_nets.flat"), "kd"),
            (("--student", "other_nets.patches"), "kd"),
            (("--teacher-views", 1), "kd"),
            (("--source", "dafl:latent=4,width=2"), "kd"),
            (("--student", lab.teacher, "--quantize", "int8"), "kd"),
        ]
    ):
        run = tmp_path / f"run{number}"
        assert lab.distill(selection, run, *TWO_STEPS, "--init", "none", *flags) == 0
        assert f"losses: {losses}, the default for these networks and images\n" in capsys.readouterr().err
        assert tomllib.loads((run / "config.toml").read_text())["distill"]["loss"] == losses.split()
        assert {"kd", "ofd"} & metrics(run)[-1].keys() == {*losses.split()}
    # what was chosen stands in the run: asking for it by name is the same request
    named = ("--loss", "kd", "ofd", "--init", "none")
    assert lab.distill(selection, tmp_path / "run0", *TWO_STEPS, *named) == 0
    assert "complete already" in capsys.readouterr().err


def test_a_student_of_the_teachers_family_begins_with_its_layers(lab, selection, finished, tmp_path, capsys):
    for number, (flags, init) in enumerate(
        [
            ((), "teacher"),
            (("--student", "wide_resnet:depth=10,width=1"), "none"),
            (("--student", "cifar_resnet:depth=8,width=17"), "none"),
            (("--student", "cifar_resnet:depth=8"), "none"),  # the teacher itself
            (("--student", finished), "none"),  # it has weights already
            (("--source", "dafl:latent=4,width=2"), "teacher"),
        ]
    ):
        run = tmp_path / f"run{number}"
        assert lab.distill(selection, run, *TWO_STEPS, *flags) == 0
        said = capsys.readouterr().err
        assert ("15 of the student's 15 layers begin as the teacher's" in said) == (init == "teacher")
        assert (f"on {lab.fitted_on} views\n8 layers are fitted" in said) == (init == "teacher")
        config = tomllib.loads((run / "config.toml").read_text())
        assert config["distill"]["init"] == init
        assert config["content"]["options"].get("init", "none") == init
    assert lab.distill(selection, tmp_path / "run0", *TWO_STEPS, "--init", "teacher") == 0
    assert "complete already" in capsys.readouterr().err


def test_without_images_the_teachers_layers_are_copied_alone(lab, tmp_path, capsys):
    common = ("--teacher", lab.teacher, *lab.flags, "--student", "cifar_resnet:depth=8,width=4", *TWO_STEPS)
    source = ("--source", "dafl:latent=4,width=2")
    assert lab.dfkd("distill", *common, *source, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "15 of the student's 15 layers begin as the teacher's" in said
    assert "fitted" not in said and "fitting" not in said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["teacher_forwards"] == 2 * 2 * 8  # for the generator's steps and the student's


def test_the_first_losses_are_pinned(lab, selection, tmp_path):
    """A teacher of seeded random weights, so that nothing trained stands before the numbers."""
    torch.manual_seed(5)
    save_file(cifar_resnet(depth=8, width=8, in_channels=1).state_dict(), tmp_path / "random.safetensors")
    teacher = ("--teacher", f"cifar_resnet:depth=8,width=8,in_channels=1@{tmp_path / 'random.safetensors'}")
    student = ("--student", "cifar_resnet:depth=8,width=4", "--precision", "fp32", "--device", "cpu")
    images = np.random.default_rng(7).integers(0, 256, (64, 16, 16, 1), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=images)
    common = (*teacher, "--normalize", "0.5/0.5", "--image-size", 16, "--precision", "fp32", "--device", "cpu")
    assert (
        lab.dfkd("select", *common, "--pool", tmp_path / "noise.npz", "--method", "random", "--out", tmp_path / "s")
        == 0
    )
    run = ("--samples", tmp_path / "s", "--out", tmp_path / "r", "--steps", 3, "--log-every", 1, "--batch-size", 16)
    losses = ("--loss", "kd", "explicit:0.5", "relation:1")
    assert lab.dfkd("distill", *teacher, *student, *run, *losses, "--lr", 0.05, "--init", "none") == 0
    got = [[row[name] for name in ("loss", "kd", "explicit", "relation")] for row in metrics(tmp_path / "r")]
    np.testing.assert_allclose(got, PINNED, rtol=1e-4)


PINNED = [
    [0.676030, 0.0945108, 0.970978, 0.0960303],
    [0.694501, 0.0944567, 0.974911, 0.1125887],
    [0.607277, 0.0627012, 0.945382, 0.0718839],
]


@pytest.mark.parametrize(
    "options",
    [
        ("--mixup", 0.3),
        # 1.2 passes
        ("--optimizer", "adamw", "--batches", "hardest:share=0.1", "--batch-size", 40, *PLAIN[-4:]),
        ("--ema", 0.9, "--cutmix", 1, *PLAIN[-4:]),
        ("--reestimate", 2, "--mixup", 1, "--cutmix", 1, *PLAIN[-4:]),
        ("--loss", "kd", "--init", "teacher", "--student", "cifar_resnet:depth=8", "--ema", 0.9, "--reestimate", 2),
    ],
)
def test_interrupted_and_resumed_is_bit_for_bit_uninterrupted(lab, selection, tmp_path, monkeypatch, capsys, options):
    flags = (*QUICK, "--keep-weights", 6, *options)
    assert lab.distill(selection, tmp_path / "whole", *flags) == 0
    step = Trainer.advance

    def interrupted(self):
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.step == 9:
            raise SystemExit("killed")  # without a word, two steps after the checkpoint that SIGTERM left
        return step(self)

    monkeypatch.setattr(Trainer, "advance", interrupted)
    assert lab.distill(selection, tmp_path / "resumed", *flags) == 143
    assert "step 7 is saved" in capsys.readouterr().err
    assert not (tmp_path / "resumed" / "result.json").exists()
    with pytest.raises(SystemExit):
        lab.distill(selection, tmp_path / "resumed", *flags)
    monkeypatch.setattr(Trainer, "advance", step)
    torch.manual_seed(99)  # nothing that happens to be in this process may matter
    assert lab.distill(selection, tmp_path / "resumed", *flags) == 0
    whole, resumed = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    kept = [{f.name: f.read_bytes() for f in (tmp_path / n / "weights").iterdir()} for n in ("whole", "resumed")]
    assert kept[0] == kept[1] and [*sorted(kept[0])] == [f"{k:07d}.safetensors" for k in range(0, 13, 2)]
    timing = ("images_per_second",)
    rows = [
        [{k: v for k, v in r.items() if k not in timing} for r in metrics(tmp_path / n)] for n in ("whole", "resumed")
    ]
    assert rows[0] == rows[1]


def test_the_seed_decides_the_student(lab, selection, finished, tmp_path):
    assert lab.distill(selection, tmp_path / "same", *QUICK) == 0
    assert lab.distill(selection, tmp_path / "other", *QUICK, "--seed", 1) == 0
    first, same, other = (
        load_file(run / "student.safetensors") for run in (finished, tmp_path / "same", tmp_path / "other")
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_a_finished_run_is_not_done_again_and_another_is_refused(lab, selection, finished, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "advance", lambda self: pytest.fail("a step was made"))
    assert lab.distill(selection, finished, *QUICK, "--test", lab.heldout) == 0
    assert "was complete already" in capsys.readouterr().err
    assert lab.distill(selection, finished, *QUICK, "--lr", 0.2) == 2
    assert "holds another run: options.lr (0.1, now 0.2)" in capsys.readouterr().err


def test_several_selections_are_mixed(lab, tmp_path):
    few = ("--pool", lab.few)
    assert lab.select(tmp_path / "sure", *few, "--method", "confidence", "--count", 80) == 0
    assert lab.select(tmp_path / "random", *few, "--method", "random", "--count", 20) == 0
    teacher = ("--teacher", lab.teacher, "--student", "cifar_resnet:depth=8,width=4", "--precision", "fp32")
    flags = ("--out", tmp_path / "run", "--epochs", 2, "--batch-size", 10)
    assert lab.dfkd("distill", *teacher, "--samples", tmp_path / "sure", tmp_path / "random", *flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 20  # two passes over 80 + 20 images
    assert len(result["selection_fingerprint"].split("+")) == 2
    assert result["top1"] is None


def test_a_student_learns_from_images_without_a_digit(lab, selection, tmp_path):
    flags = ("--steps", 80, "--batch-size", 32, "--test", lab.heldout, "--checkpoint-every", 1000, "--log-every", 4)
    assert lab.distill(selection, tmp_path / "run", *flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["teacher_top1"] > 0.9
    assert result["top1"] > 0.5
    costs = [row["loss"] for row in metrics(tmp_path / "run")]
    assert sum(costs[-5:]) < 0.85 * sum(costs[:5])  # several batches: one alone differs by as much


def test_a_loss_that_is_not_finite_stops_with_its_step_and_keeps_the_checkpoint(
    lab, selection, tmp_path, capsys, monkeypatch
):
    (tmp_path / "bad_losses.py").write_text(
        "calls = [0]\n"
        "def blows_up(student, teacher):\n"
        "    calls[0] += 1\n"
        "    return student.logits.mean() * (float('inf') if calls[0] > 8 else 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = ("--loss", "kd", "bad_losses.blows_up", *QUICK)
    assert lab.distill(selection, tmp_path / "run", *flags) == 2
    assert "no longer finite at step 8 (term bad_losses.blows_up)" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "checkpoint" / "progress.json").read_text())["step"] == 5


def test_a_finished_run_is_tested_and_named_later_without_training(lab, selection, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert lab.distill(selection, run, *TWO_STEPS) == 0
    monkeypatch.setattr(Trainer, "advance", lambda self: pytest.fail("a step was made"))
    assert lab.distill(selection, run, *TWO_STEPS, "--test", lab.heldout, "--name", "new") == 0
    result = json.loads((run / "result.json").read_text())
    assert (result["name"], result["test_images"], result["steps"]) == ("new", 400, 2)
    figures = tmp_path / "figures.json"
    assert lab.dfkd("evaluate", "--model", run, "--data", lab.heldout, "--json", figures) == 0
    assert json.loads(figures.read_text())["top1"] == pytest.approx(result["top1"])
    assert tomllib.loads((run / "config.toml").read_text())["distill"]["name"] == "new"


def test_the_figures_are_of_the_test_that_the_run_names(lab, selection, tmp_path, monkeypatch):
    few = tmp_path / "few.npz"
    with np.load(lab.heldout) as heldout:
        np.savez(few, images=heldout["images"][:100], labels=heldout["labels"][:100])

    def tested(run):
        asked = tomllib.loads((run / "config.toml").read_text())["distill"]
        return json.loads((run / "result.json").read_text())["test_images"], Path(asked["test"]).name, asked.get("name")

    step = Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda self: exit() if self.step == 8 else step(self))
    with pytest.raises(SystemExit):
        lab.distill(selection, tmp_path / "run", *PLAIN, "--test", lab.heldout)
    monkeypatch.setattr(Trainer, "advance", step)
    run = tmp_path / "run"
    assert lab.distill(selection, run, *PLAIN, "--test", few) == 0  # it is gone on with
    assert tested(run) == (100, "few.npz", None)
    monkeypatch.setattr(Trainer, "advance", lambda self: pytest.fail("a step was made"))
    assert lab.distill(selection, run, *PLAIN, "--test", lab.heldout) == 0
    assert tested(run) == (400, Path(lab.heldout).name, None)
    assert lab.distill(selection, run, *PLAIN, "--name", "new") == 0
    assert tested(run) == (400, Path(lab.heldout).name, "new")
    assert lab.distill(selection, run, *PLAIN, "--test", few) == 0
    few.write_bytes(Path(lab.heldout).read_bytes())  # the same name, other images
    assert lab.distill(selection, run, *PLAIN, "--test", few) == 0
    assert tested(run)[:2] == (400, "few.npz")


def test_another_spelling_is_the_same_run(lab, selection, tmp_path, monkeypatch):
    common = ("--teacher", lab.teacher, "--samples", selection, "--out", tmp_path / "run", "--steps", 3)
    first = ("--student", "cifar_resnet:depth=8,width=4", "--precision", "fp32", "--loss", "kd", "relation")
    other = ("--student", "cifar_resnet:width=4,depth=8", "--precision", "fp32", "--loss", "KD:1.0", "relation:1")
    assert lab.dfkd("distill", *common, *first) == 0
    monkeypatch.setattr(Trainer, "advance", lambda self: pytest.fail("a step was made"))
    assert lab.dfkd("distill", *common, *other, "--normalize", "0.5/0.5", "--image-size", 16) == 0
    full = ("--loss", "kd:temperature=4,hard=0", "relation", "--batches", "SHUFFLED")
    assert lab.dfkd("distill", *common, *first[:4], *full) == 0


def test_selections_for_different_inputs_are_not_mixed_in_silence(lab, selection, tmp_path, capsys):
    other = ("--normalize", "none", "--pool", lab.few, "--count", 50)
    assert lab.select(tmp_path / "other", *other) == 0
    mixed = ("--teacher", lab.teacher, "--student", "cifar_resnet:depth=8,width=4", "--precision", "fp32")
    flags = ("--samples", selection, tmp_path / "other", "--out", tmp_path / "run", "--steps", 2)
    assert lab.dfkd("distill", *mixed, *flags) == 2
    assert "was selected with --normalize none" in capsys.readouterr().err
    assert lab.dfkd("distill", *mixed, *flags, "--normalize", "0.5/0.5") == 0
    assert "note" not in capsys.readouterr().err
    one = ("--samples", tmp_path / "other", "--out", tmp_path / "one", "--steps", 2)
    assert lab.dfkd("distill", *mixed, *one, "--normalize", "0.5/0.5") == 0
    said = capsys.readouterr().err
    assert (
        f"note: the teacher is used with --normalize 0.5/0.5, and {tmp_path / 'other'} was selected with none" in said
    )


def test_a_damaged_checkpoint_is_named(lab, selection, tmp_path, capsys, monkeypatch):
    step = Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda self: exit() if self.step == 8 else step(self))
    with pytest.raises(SystemExit):
        lab.distill(selection, tmp_path / "run", *PLAIN)
    state = tmp_path / "run" / "checkpoint" / "state.pt"
    state.write_bytes(state.read_bytes()[:5000])
    assert lab.distill(selection, tmp_path / "run", *PLAIN) == 2
    assert "is damaged" in capsys.readouterr().err


def test_select_and_distill_open_nothing_but_what_is_named(lab, tmp_path, monkeypatch):
    """The labeled data lies beside the pool, in the folder that is worked in; no file of it is opened."""
    monkeypatch.chdir(lab.folder)
    opened = set()

    def watch(event, arguments):
        if event == "open" and isinstance(arguments[0], str):
            opened.add(os.path.basename(arguments[0]))

    sys.addaudithook(watch)  # cannot be taken off again: it only keeps names
    assert lab.select(tmp_path / "s", "--count", 50) == 0
    assert lab.distill(tmp_path / "s", tmp_path / "r", "--steps", 2, "--batch-size", 8) == 0
    assert {"pool.npz", "teacher.safetensors"} & opened
    assert "heldout.npz" not in opened


def test_distill__names_a_damaged_test_file_before_the_first_step(lab, selection, tmp_path, capsys):
    with np.load(lab.heldout) as held:
        for row, (pixels, label) in enumerate(zip(held["images"][:20], held["labels"], strict=False)):
            (tmp_path / "test" / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.squeeze()).save(tmp_path / "test" / str(label) / f"{row}.png")
    cut = next((tmp_path / "test").rglob("7.png"))
    cut.write_bytes(cut.read_bytes()[:60])
    assert lab.distill(selection, tmp_path / "run", *TWO_STEPS, "--test", tmp_path / "test") == 2
    assert f"test/{cut.parent.name}/7.png cannot be read" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
