"""Whatever is wrong with a request: one line, exit status 2, no traceback, nothing written."""

import numpy as np
import pytest
import torch

from dfkd.models import cifar_resnet
from dfkd.models.classifier import Classifier


@pytest.fixture
def refused(lab, tmp_path, capsys, monkeypatch):
    """Run a command that is wrong; its one line."""
    monkeypatch.chdir(tmp_path)

    def teacher(self, pixels):
        raise AssertionError("the teacher was run before the request was refused")

    def run(*arguments):
        if "--count" not in arguments:  # how many a threshold admits is known once the pool is scored
            monkeypatch.setattr(Classifier, "__call__", teacher)
        before = sorted(tmp_path.iterdir())
        assert lab.dfkd(*arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("dfkd")
        assert not any("Traceback" in line for line in lines)
        assert sorted(tmp_path.iterdir()) == before
        return lines[-1]

    return run


BASE = {"--teacher": "TEACHER", "--pool": "POOL", "--out": "out", "--normalize": "0.5/0.5", "--image-size": 16}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--teacher": "cifar_resnt:depth=8"}, "no model is called 'cifar_resnt'; did you mean 'cifar_resnet'?"),
        ({"--teacher": "cifar_resnet:dept=8"}, "has no parameter 'dept'; did you mean 'depth'?"),
        ({"--teacher": "cifar_resnet:depth=9"}, "9"),
        ({"--teacher": "cifar_resnet:depth=8@gone.pt"}, "gone.pt"),
        ({"--teacher": "cifar_resnet:depth=20,width=16,in_channels=1@WEIGHTS"}, "layer1.1.conv1.weight"),
        ({"--pool": "gone"}, "gone"),
        ({"--pool": "empty"}, "empty"),
        ({"--method": "treshold"}, "did you mean 'threshold'?"),
        ({"--method": "threshold:gama=1"}, "did you mean 'gamma'?"),
        ({"--method": "threshold:0.2"}, "0.2 is for no parameter; write threshold:key=0.2 with one of gamma, draw"),
        ({"--method": "random:3"}, "3 is for no parameter: random has none"),
        ({"--gamma": 0}, "--gamma 0.0 is not above 0"),
        ({"--method": "threshold:gamma=2"}, "threshold:gamma=2 is not above 0 and at most 1"),
        (
            {"--pool": "FEW", "--gamma": 0.25, "--count": 70},
            "30 images that are left of 120 usable ones; --gamma 0.584",
        ),
        (
            {"--pool": "FEW", "--method": "threshold", "--count": 100},
            "84 images that are left of 120 usable ones; --gamma 0.834",
        ),
        ({"--count": 5000}, "--count 5000 is above the pool's 1200 images; give as many or fewer"),
        ({"--count": 0}, "--count 0 is not at least 1"),
        ({"--count": "many"}, "--count: 'many' is not a whole number"),
        ({"--normalize": "imagnet"}, "did you mean 'imagenet'?"),
        ({"--device": "gpu"}, "--device 'gpu'"),
        ({"--image-size": -1}, "-1"),
        ({"--out": "full"}, "--out full holds files that are not a selection"),
        ({"--out": "full/letter.txt"}, "--out full/letter.txt is a file; give another folder"),
        ({"--pool": "photo.jpg"}, "'photo.jpg' is in no known format; it is one image; name the folder that holds"),
        ({"--out": "SELECTION"}, "holds another selection: options.count (400, now None)"),
        ({"--teacher": "cifar_resnet:depth=8"}, "has no weights, and its predictions would be random"),
        ({"--teacher-taps": "gibberish"}, "gibberish"),
        ({"--max-unreadable": "nan"}, "--max-unreadable nan is not at least 0 and at most 1"),
        ({"--out": "full/letter.txt/x"}, "letter.txt is a file"),
        ({"--gama": 1}, "there is no option '--gama'; did you mean '--gamma'?"),
        ({"--teacher": None}, "missing --teacher"),
        ({"--preset": "quik"}, "did you mean 'quick'?"),
    ],
)  # fmt: skip
def test_select(refused, lab, selection, tmp_path, change, said):
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    names = {
        "TEACHER": lab.teacher,
        "POOL": lab.pool,
        "FEW": lab.few,
        "SELECTION": selection,
        "WEIGHTS": lab.folder / "teacher.safetensors",
    }
    flags = {k: v for k, v in (BASE | change).items() if v is not None}
    if change.get("--out") == "SELECTION":
        flags["--precision"] = "fp32"
    spelled = [str(x) for pair in flags.items() for x in pair]
    for short, value in names.items():
        spelled = [text.replace(short, str(value)) for text in spelled]
    assert said in refused("select", *spelled)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--samples": "gone"}, "gone does not exist; dfkd select makes one"),
        ({"--samples": "empty"}, "empty is not a selection"),
        ({"--student": "cifar_resnet:depth=8,num_classes=4"}, "has 4 classes, the teacher 10"),
        ({"--teacher": "cifar_resnet:depth=8,in_channels=1@seven.pt"}, "--teacher has 7 classes and 1 channels"),
        ({"--teacher": "cifar_resnet:depth=8,in_channels=1"}, "has no weights, and its predictions would be random"),
        ({"--student": "student.pt2"}, "name the architecture instead"),
        ({"--loss": "kd:-1"}, "the weight -1 is not at least 0"),
        ({"--loss": "torch.nn.MSELoss"}, "loss torch.nn.MSELoss cannot take the outputs of student and teacher"),
        ({"--student-taps": "middle=bn1"}, "--student-taps names 'middle'; the losses read pre1, pre2, ..."),
        ({"--loss": "relation", "--class-dropping": 0.1}, "--class-dropping 0.1 changes nothing: no loss uses it; kd"),
        ({"--loss": "simkd:reuse=true", "--student-taps": "last=layer1"}, "needs a student whose logits come from"),
        ({"--loss": "ft", "--steps": 500}, "--loss ft changes the student only after 500 steps, and the run has 500"),
        ({"--batches": "shuffled:3"}, "3 is for no parameter: shuffled has none"),
        ({"--batches": "class"}, "no order of batches is called 'class'; did you mean 'classes'?"),
        (
            {"--batches": "classes:each=7"},
            "order of batches classes: batches of 128 images cannot hold groups of each=7; 126 images can",
        ),
        ({"--batches": "superclasses:count=1000"}, "1000 clusters of 400 images"),
        ({"--batches": "hardest:share=2"}, "hardest:share=2 is not above 0 and at most 1"),
        ({"--batches": "hardest", "--cutmix": 1}, "--batches hardest needs the stored image that each view shows"),
        ({"--loss": "crd", "--mixup": 1}, "loss crd: it needs the stored image that each view shows"),
        ({"--seed": -1}, "--seed -1 is not at least 0"),
        ({"--mixup": "nan"}, "--mixup nan is not at least 0"),
        ({"--cutmix": -1}, "--cutmix -1.0 is not at least 0"),
        ({"--ema": 1}, "--ema 1.0 is not at least 0 and below 1"),
        (
            {"--init": "teacher", "--student": "cifar_resnet:depth=8,width=32"},
            "--init teacher: no layer of the student",
        ),
        ({"--out": "full/letter.txt/run"}, "letter.txt is a file"),
        ({"--loss": "kdd"}, "no loss is called 'kdd'"),
        ({"--loss": "kd:temperature=hot"}, "kd:temperature='hot' is not a number"),
        ({"--steps": 0}, "--steps 0 is not at least 1"),
        ({"--epochs": 2, "--steps": 2}, "--epochs 2 and --steps 2 both set the length"),
        ({"--lr": -1}, "--lr -1.0 is not at least 0"),
        ({"--out": "empty/../full"}, "holds files that are not a run"),
        ({"--student-taps": "pre1=bn9"}, "'bn9'"),
        ({"--test": "gone.npz"}, "gone.npz"),
        ({"--test": "POOL"}, "label"),
        ({"--image-size": 32}, "--image-size 32 is not the selection's 16"),
        ({"--optimizer": "adam"}, "invalid choice 'adam'"),
    ],
)
def test_distill(refused, lab, selection, tmp_path, change, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    torch.save(cifar_resnet(depth=8, num_classes=7, in_channels=1).state_dict(), tmp_path / "seven.pt")
    flags = {
        "--teacher": lab.teacher,
        "--student": "cifar_resnet:depth=8",
        "--samples": selection,
        "--out": "run",
    } | change
    assert said in refused("distill", *[lab.pool if x == "POOL" else x for pair in flags.items() for x in pair])


def test_commands(refused, lab, tmp_path):
    assert "there is no command 'selct'; did you mean 'select'?" in refused("selct")
    assert "gone" in refused("evaluate", "--model", "gone", "--data", lab.heldout)
    unlabeled = refused("evaluate", "--model", lab.teacher, "--image-size", 16, "--data", lab.pool)
    assert "label" in unlabeled
    for command in (("evaluate", "--data", lab.heldout), ("export", "--out", "student.pt2")):
        said = refused(*command, "--model", "cifar_resnet:depth=8,in_channels=1")
        assert (
            "--model 'cifar_resnet:depth=8,in_channels=1' has no weights, and its predictions would be random" in said
        )
    assert "gone" in refused("inspect", "gone")
    assert "gone" in refused("compare", "gone", "--out", "report.html")
    assert "gone.toml" in refused("run", "gone.toml")
    assert refused("run").startswith("dfkd run: missing file")
    assert refused("inspect").startswith("dfkd inspect: missing folder")


def test_labels_outside_the_classes(refused, lab, tmp_path):
    held = np.load(lab.heldout)
    np.savez(tmp_path / "high.npz", images=held["images"], labels=held["labels"] + 5)
    said = refused("evaluate", "--model", lab.teacher, "--image-size", 16, "--data", "high.npz")
    assert "labels from 5 to 14; the model has classes 0 to 9" in said


def test_weights_that_would_run_code_are_refused(refused, lab, tmp_path):
    torch.save(cifar_resnet(depth=8), tmp_path / "whole.pt")
    said = refused("evaluate", "--model", "cifar_resnet:depth=8@whole.pt", "--data", lab.heldout)
    assert "state_dict" in said
