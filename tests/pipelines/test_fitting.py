"""A student without gradients through the real commands: fitted, resumed, compared, refused what means nothing."""

import json

import pytest

from dfkd.training import loop

TREES = ("--student", "sklearn:rounds=8,leaves=8,depth=4", "--no-flip")


@pytest.fixture(scope="module")
def run(lab, selection, tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted") / "run"
    options = ("--steps", 6, "--batch-size", 64, "--log-every", 2, "--test", lab.heldout)
    assert lab.distill(selection, out, *TREES, *options) == 0
    return out


def test_distill__fits_trees_and_they_are_a_run_like_any_other(lab, run, tmp_path):
    result = json.loads((run / "result.json").read_text())
    assert result["images_seen"] == result["teacher_forwards"] == 6 * 64
    assert result["top1"] > 0.2 and result["student_parameters"] > 0
    assert lab.dfkd("evaluate", "--model", run, "--data", lab.heldout, "--json", tmp_path / "e.json") == 0
    assert json.loads((tmp_path / "e.json").read_text())["top1"] == pytest.approx(result["top1"])
    assert lab.dfkd("compare", run, "--out", tmp_path / "report.html") == 0
    assert lab.dfkd("inspect", run, "--verify") == 0


def test_distill__goes_on_from_a_checkpoint_to_the_same_trees(lab, selection, run, tmp_path, monkeypatch):
    out, options = tmp_path / "run", ("--steps", 6, "--batch-size", 64, "--log-every", 2, "--checkpoint-every", 4)
    save = loop._save

    def killed(learner, record):
        save(learner, record)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", killed)
        assert lab.distill(selection, out, *TREES, *options, "--test", lab.heldout) == 130
    assert lab.distill(selection, out, *TREES, *options, "--test", lab.heldout) == 0
    assert (out / "student.safetensors").read_bytes() == (run / "student.safetensors").read_bytes()


def test_distill__takes_one_pass_where_no_length_is_given(lab, selection, tmp_path):
    assert lab.distill(selection, tmp_path / "run", "--student", "sklearn:kind=logistic", "--batch-size", 100) == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["steps"] == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--loss", "kd", "ofd"), "its targets are the teacher's probabilities; leave out --loss"),
        (("--ema", 0.9), "--ema 0.9 changes nothing"),
        (("--keep-weights", 4), "--keep-weights 4 changes nothing"),
        (("--class-dropping", 0.1), "--class-dropping 0.1 changes nothing"),
        (("--weight-decay", 0), "--weight-decay 0.0 changes nothing"),
        (("--source", "dafl"), "a generator needs gradients"),
        (("--steps", 100000, "--batch-size", 1000), "GiB; give fewer --steps"),
    ],
)
def test_distill__refuses_what_means_nothing_to_it(lab, selection, tmp_path, capsys, options, said):
    assert lab.distill(selection, tmp_path / "run", *TREES, *options) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--specialists", 2), ("--prune", 0.5), ("--quantize", "int8")])
def test_distill__refuses_another_form_of_a_student_without_gradients(lab, selection, run, tmp_path, capsys, option):
    said = " ".join(map(str, option))
    for student in (run, "sklearn:rounds=8"):  # weights would not help the second one
        assert lab.distill(selection, tmp_path / "other", "--student", student, *option) == 2
        assert f"{said} needs a student that learns by gradients, and" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
