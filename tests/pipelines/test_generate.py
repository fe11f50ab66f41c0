"""`dfkd generate`, and `dfkd distill --source`: the commands as they are typed."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dfkd.app import demo
from dfkd.distill.init import reconstruct
from dfkd.distill.trainer import Trainer
from dfkd.formats.shards import Shards
from dfkd.generators.build import choose
from dfkd.generators.dafl import DAFL
from dfkd.models import lenet5

SMALL = ("--batch-size", 16, "--log-every", 2, "--checkpoint-every", 3)
TINY = "dafl:latent=8,width=4"


@pytest.fixture
def generate(lab):
    def run(out, *more, method=TINY):
        return lab.dfkd(
            "generate", "--teacher", lab.teacher, *lab.flags, "--method", method, "--out", out, *SMALL, *more
        )

    return run


@pytest.fixture
def along(lab):
    """A distillation with a generator beside it."""

    def run(out, *more, source=TINY, loss="kd"):
        student = ("--student", "cifar_resnet:depth=8,width=4", *lab.flags, "--loss", loss)
        return lab.dfkd("distill", "--teacher", lab.teacher, *student, "--source", source, "--out", out, *SMALL, *more)

    return run


@pytest.fixture
def stop_at_5(monkeypatch):
    """Let the fifth update of the generator be interrupted, once; the list counts the updates."""

    def begin(kind=DAFL, at=5):
        update, calls = kind.update, []

        def counted(self, student):
            calls.append(self.updates)
            if len(calls) == at:
                raise KeyboardInterrupt
            return update(self, student)

        monkeypatch.setattr(kind, "update", counted)
        return calls

    return begin


def content(folder):
    """Everything in a folder but what names other files' times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "metrics.jsonl"}


def test_it_makes_a_folder_that_every_other_command_takes(lab, generate, tmp_path):
    assert generate(tmp_path / "made", "--steps", 6, "--count", 70) == 0
    from datasets import load_from_disk

    assert len(load_from_disk(str(tmp_path / "made"))) == 70
    shards = Shards(tmp_path / "made")
    assert shards.manifest.source == "dafl" and shards.manifest.count == 70
    assert sum(shards.manifest.per_class) == 70
    assert shards.column("source")[0] == "dafl/0"
    assert not (tmp_path / "made" / "checkpoint").exists()
    steps = [json.loads(line)["step"] for line in (tmp_path / "made" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]

    assert lab.dfkd("inspect", tmp_path / "made", "--out", tmp_path / "made.html") == 0
    assert lab.dfkd("inspect", tmp_path / "made", "--verify") == 0
    few = ("--steps", 3, "--batch-size", 16)
    assert lab.distill(tmp_path / "made", tmp_path / "run", *few, "--test", lab.heldout) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["source"] == "dafl" and result["selection_fingerprint"] == shards.manifest.fingerprint
    assert shards.manifest.cost == {"teacher_forwards": 6 * 16 + 70, "generator_steps": 6}
    assert result["generator_steps"] == 6 and result["teacher_forwards"] == 3 * 16 + lab.fitted_on + 6 * 16 + 70
    # scored, thresholded and dropped from like pool images
    again = ("--pool", tmp_path / "made", "--count", 20, "--out", tmp_path / "picked")
    assert lab.dfkd("select", "--teacher", lab.teacher, *lab.flags, *again) == 0
    picked = Shards(tmp_path / "picked")
    assert len(picked) == 20 and picked.column("confidence").min() >= shards.column("confidence").min()


def test_the_same_seed_gives_the_same_bytes_and_what_is_done_is_not_done_again(generate, tmp_path, capsys):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert generate(tmp_path / name, "--steps", 4, "--count", 40, "--seed", seed) == 0
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a["data-00000.arrow"] == b["data-00000.arrow"] != c["data-00000.arrow"]
    assert generate(tmp_path / "a", "--steps", 4, "--count", 40) == 0
    assert "these images are complete already" in capsys.readouterr().err
    assert content(tmp_path / "a") == a
    assert generate(tmp_path / "a", "--steps", 5, "--count", 40) == 2
    assert "options.steps (4, now 5)" in capsys.readouterr().err


def test_interrupted_and_resumed_is_as_uninterrupted(generate, tmp_path, stop_at_5):
    assert generate(tmp_path / "whole", "--steps", 8, "--count", 40) == 0
    calls = stop_at_5()
    assert generate(tmp_path / "again", "--steps", 8, "--count", 40) == 130
    assert not (tmp_path / "again").exists()
    assert generate(tmp_path / "again", "--steps", 8, "--count", 40) == 0
    assert calls[5:] == [3, 4, 5, 6, 7], "from the checkpoint of step 3"
    assert content(tmp_path / "again")["data-00000.arrow"] == content(tmp_path / "whole")["data-00000.arrow"]


def test_another_requests_checkpoint_is_not_gone_on_with(generate, tmp_path, stop_at_5):
    stop_at_5()
    assert generate(tmp_path / "out", "--steps", 8, "--count", 40, "--seed", 3) == 130
    assert generate(tmp_path / "out", "--steps", 8, "--count", 40) == 0
    assert generate(tmp_path / "fresh", "--steps", 8, "--count", 40) == 0
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_fill_adds_what_a_selection_lacks(lab, generate, tmp_path, capsys):
    sure = ("--method", "confidence", "--pool", lab.few, "--count", 50, "--out", tmp_path / "picked")
    assert lab.select(sure[-1], *sure[:-2]) == 0
    held = np.array(Shards(tmp_path / "picked").manifest.per_class)
    assert generate(tmp_path / "made", "--steps", 12, "--fill", tmp_path / "picked") == 0
    made = np.array(Shards(tmp_path / "made").manifest.per_class)
    assert (made <= np.clip(5 - held, 0, None)).all() and made.sum() > 0
    if (made < np.clip(5 - held, 0, None)).any():
        assert "are missing after" in capsys.readouterr().err
    both = ("--steps", 2, "--batch-size", 16, "--weights", 3, 1)
    assert lab.distill(tmp_path / "picked", tmp_path / "run", tmp_path / "made", *both) == 2  # samples are one option
    samples = ("--samples", tmp_path / "picked", tmp_path / "made")
    student = ("--student", "cifar_resnet:depth=8,width=4", "--precision", "fp32", "--out", tmp_path / "run")
    assert lab.dfkd("distill", "--teacher", lab.teacher, *student, *samples, *both) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["source"] == "selection+dafl"


def test_a_generator_learns_along_with_the_student(lab, along, tmp_path):
    assert along(tmp_path / "run", "--steps", 4, "--test", lab.heldout) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["source"] == "dafl" and result["selection_fingerprint"] is None
    assert result["generator_steps"] == 4 and result["images_seen"] == 64
    assert result["teacher_forwards"] == 2 * 64, "the generator's own are counted"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"one_hot", "activation", "class_entropy"} <= rows[-1].keys()


def test_a_generator_beside_a_selection(lab, along, selection, tmp_path):
    mixed = ("--samples", selection, "--steps", 3, "--weights", 3, 1)
    assert along(tmp_path / "run", *mixed) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["source"] == "selection+dafl"
    assert along(tmp_path / "run", *mixed[:-1], 2) == 2, "the shares decide the student"


@pytest.mark.parametrize(("weights", "steps"), [((), 50), (("--weights", 4, 1), 32)])
def test_epochs_count_the_stored_images_alone(along, selection, tmp_path, monkeypatch, weights, steps):
    """Of a batch of 32 images 16 are of the 400, or what --weights says: 25.6."""
    monkeypatch.setattr(Trainer, "advance", lambda self: pytest.fail(f"{self.plan.steps} steps"))
    with pytest.raises(pytest.fail.Exception, match=f"^{steps} steps"):
        along(tmp_path / "run", "--samples", selection, "--epochs", 2, "--batch-size", 32, *weights)


def test_the_seconds_of_a_warm_up_outlive_an_interruption(along, tmp_path, stop_at_5, monkeypatch):
    source, few = RESUMED["fastdfkd"], ("--steps", 4, "--checkpoint-every", 1)
    kind = choose(source).target
    update = kind.update

    def slow(self, student):
        time.sleep(0.05)
        return update(self, student)

    monkeypatch.setattr(kind, "update", slow)
    stop_at_5(kind, 4)
    assert along(tmp_path / "run", *few, source=source) == 130
    progress = json.loads((tmp_path / "run" / "checkpoint" / "progress.json").read_text())
    assert progress["step"] == 0 and progress["seconds"] > 0.15


def test_a_run_with_a_generator_resumes_exactly(along, tmp_path, stop_at_5):
    assert along(tmp_path / "whole", "--steps", 8) == 0
    stop_at_5()
    assert along(tmp_path / "again", "--steps", 8) == 130
    assert along(tmp_path / "again", "--steps", 8) == 0
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "again")]
    assert weights[0] == weights[1]


RESUMED = {
    "fastdfkd": "fastdfkd:steps=2,every=2,warmup=3,latent=4,width=2",
    "cmi": "cmi:steps=2,every=2,warmup=3,latent=4,width=2,negatives=8,memory=64",
    "nayer": "nayer:steps=2,every=2,warmup=3,hidden=8,width=2",
    "deepinversion": "deepinversion:steps=2,every=2,batches=3",
    "zskt": "zskt:latent=4,width=2,every=2",
}


@pytest.mark.parametrize("name", sorted(RESUMED))
def test_every_kind_of_generator_resumes_from_the_disk(along, tmp_path, stop_at_5, name):
    """Within the warm-up of those that have one, and amid a later batch."""
    source = RESUMED[name]
    few = ("--steps", 8, "--checkpoint-every", 1)
    assert along(tmp_path / "whole", *few, source=source) == 0
    for at in (3, 2) if name == "zskt" else (4, 7):  # which has no warm-up
        calls = stop_at_5(choose(source).target, at)
        assert along(tmp_path / "again", *few, source=source) == 130
    assert along(tmp_path / "again", *few, source=source) == 0
    assert 0 < calls[0] < calls[at], "it did not begin anew"
    weights = [(tmp_path / run / "student.safetensors").read_bytes() for run in ("whole", "again")]
    assert weights[0] == weights[1]


def test_a_run_of_generated_images_of_another_size_is_another_run(along, tmp_path, capsys):
    few, out = ("--steps", 1), tmp_path / "run"
    assert along(out, *few, "--image-size", 16) == 0
    assert along(out, *few, "--image-size", 18) == 2  # both are shifted by two pixels
    assert "holds another run: image_size (16, now 18)" in capsys.readouterr().err


def test_a_run_that_stopped_in_a_warm_up_does_not_fit_the_student_again(
    along, selection, tmp_path, stop_at_5, monkeypatch
):
    source, few = RESUMED["fastdfkd"], ("--steps", 4, "--samples", selection)
    assert along(tmp_path / "whole", *few, source=source) == 0
    stop_at_5(choose(source).target, 4)
    assert along(tmp_path / "again", *few, source=source) == 130
    assert json.loads((tmp_path / "again" / "checkpoint" / "progress.json").read_text())["step"] == 0
    monkeypatch.setattr(reconstruct, "reconstruct", lambda *_: pytest.fail("it was fitted again"))
    assert along(tmp_path / "again", *few, source=source) == 0
    weights = [(tmp_path / run / "student.safetensors").read_bytes() for run in ("whole", "again")]
    assert weights[0] == weights[1]


def test_a_generator_moves_nothing_of_the_student(along, tmp_path, monkeypatch):
    advance, looks = Trainer.advance, []

    def watched(self):
        update = self.source.update

        def checked(judge):
            before = {name: value.clone() for name, value in self.student.module.state_dict().items()}
            seen = update(judge)
            assert all(torch.equal(before[name], value) for name, value in self.student.module.state_dict().items())
            assert self.student.module.training
            looks.append(self.source.generator_steps)
            return seen

        with monkeypatch.context() as patch:
            patch.setattr(self.source, "update", checked)
            return advance(self)

    monkeypatch.setattr(Trainer, "advance", watched)
    assert along(tmp_path / "run", "--steps", 4, source="dfad:latent=4,width=2,every=1") == 0
    assert looks == [1, 2, 3, 4]


def test_fewer_images_than_asked_for_are_told(generate, tmp_path, capsys):
    tiny = "deepinversion:steps=2,batches=1"
    assert generate(tmp_path / "out", "--steps", 2, "--count", 50, method=tiny) == 0
    assert "warning: 34 of 50 are missing after 16 images; more --steps make more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"--method": "dalf"}, "no generator is called 'dalf'; did you mean 'dafl'"),
        ({"--method": "dafl:0.5"}, "'dafl:0.5': 0.5 is for no parameter; write dafl:key=0.5 with one of latent"),
        ({"--method": "dafl:latnt=5"}, "has no parameter 'latnt'; did you mean 'latent'"),
        ({"--method": "dfkd.formats.shards.Shards"}, "Shards' is not a dfkd.generators.base.Method"),
        ({"--method": "dafl:width=none"}, "dafl:width=None is not a whole number"),
        ({"--count": 0}, "--count 0 is not at least 1"),
        ({"--image-size": 2}, "images of 2 pixels are too small for a generator: 4 at least"),
        ({"--samples": "SELECTION"}, "--samples changes nothing: dafl learns from the teacher alone"),
        ({"--student": "cifar_resnet:depth=8,width=4"}, "has no weights, and its predictions would be random"),
        ({"--student": "TEACHER"}, "--student changes nothing: dafl uses none"),
        ({"--fill": "gone"}, "gone does not exist"),
    ],
)
def test_wrong_requests_are_answered_in_one_line(lab, selection, tmp_path, capsys, arguments, said):
    given = {"--teacher": lab.teacher, "--method": TINY, "--out": tmp_path / "out", "--steps": 2, "--batch-size": 16}
    given |= {"--normalize": demo.NORMALIZE, "--image-size": demo.SIDE} | arguments
    names = {"SELECTION": selection, "TEACHER": lab.teacher}
    flags = [names.get(value, value) for pair in given.items() for value in pair]
    capsys.readouterr()
    assert lab.dfkd("generate", *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and error.startswith("dfkd generate: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "there is nothing to learn from: --samples names selections, --source a generator"),
        (("--source", "dafl", "--epochs", 3), "--epochs 3 counts passes over --samples, and there are none"),
        (("--source", "dafl", "--weights", 1, 2), "--weights has 2 numbers for 1 of --samples and --source"),
        (
            ("--source", "dafl", "--batches", "classes:each=8"),
            "orders whole batches of --samples; leave out --weights and --source",
        ),
        (("--source", "dafl", "--weights", 0), "--weights 0.0 is not above 0"),
        (
            ("--source", "dafl", "--loss", "crd"),
            "loss crd: it has a memory of every stored image, and a generator makes new ones",
        ),
    ],
)
def test_wrong_sources_are_answered_in_one_line(lab, tmp_path, capsys, flags, said):
    student = ("--student", "cifar_resnet:depth=8,width=4", "--out", tmp_path / "run")
    assert lab.dfkd("distill", "--teacher", lab.teacher, *lab.flags, *student, *flags) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_images_that_blow_up_stop_with_the_term_and_keep_the_checkpoint(generate, tmp_path, monkeypatch, capsys):
    update = DAFL.update

    def blow_up(self, student):
        metrics = update(self, student)
        return metrics | ({"one_hot": metrics["one_hot"] * float("nan")} if self.updates >= 5 else {})

    monkeypatch.setattr(DAFL, "update", blow_up)
    assert generate(tmp_path / "out", "--steps", 8) == 2
    assert "no longer finite at step 6 (term one_hot)" in capsys.readouterr().err
    assert (tmp_path / "out.partial" / "checkpoint" / "state.pt").exists()


def test_a_teacher_without_batchnorm_can_be_generated_from(lab, tmp_path):
    save_file(lenet5(in_channels=1).state_dict(), tmp_path / "lenet.safetensors")
    teacher = ("--teacher", f"lenet5:in_channels=1@{tmp_path / 'lenet.safetensors'}", "--normalize", "0.5/0.5")
    made = ("--method", TINY, "--steps", 2, "--count", 20, "--out", tmp_path / "out", *SMALL)
    assert lab.dfkd("generate", *teacher, *made) == 0
    assert len(Shards(tmp_path / "out")) == 20


def test_a_damaged_checkpoint_is_told(generate, tmp_path, stop_at_5, capsys):
    stop_at_5()
    assert generate(tmp_path / "out", "--steps", 8) == 130
    state = tmp_path / "out.partial" / "checkpoint" / "state.pt"
    state.write_bytes(state.read_bytes()[:-9])
    assert generate(tmp_path / "out", "--steps", 8) == 2
    assert "is damaged" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out.partial")
    assert generate(tmp_path / "out", "--steps", 8, "--count", 10) == 0


def test_taps_that_a_method_does_not_read_are_said(lab, generate, tmp_path, capsys):
    taps = ("--teacher-taps", "last=linear:input", "--count", 4, "--steps", 2)
    assert generate(tmp_path / "a", *taps, method="deepinversion") == 2  # too few steps for an image
    assert "note: --teacher-taps changes nothing: deepinversion reads no features\n" in capsys.readouterr().err
    assert generate(tmp_path / "b", *taps) == 0
    assert "changes nothing" not in capsys.readouterr().err
