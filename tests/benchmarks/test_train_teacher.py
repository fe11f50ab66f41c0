import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dfkd.app import cli


@pytest.fixture
def train(script, data):
    """Train a small network; the exit status."""

    def call(out, *more):
        names = ("--data", data / "cifar10_train40k.npz", "--test", data / "cifar10_heldout10k.npz", "--out", out)
        size = ("--model", "cifar_resnet:depth=8,width=4", "--normalize", "cifar10", "--batch-size", 16)
        return script("train_teacher").main([str(word) for word in (*names, *size, "--precision", "fp32", *more)])

    return call


def test_a_teacher_learns_and_is_a_model(train, data, tmp_path, capsys):
    out = tmp_path / "teacher"
    assert train(out, "--epochs", 20, "--lr", 0.1) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["top1"] > 0.5 and result["images"] == 20 and result["steps"] == 80  # of ten classes
    assert result.keys() >= {"seconds", "hardware", "threads", "torch", "date", "device", "precision"}
    figures = tmp_path / "figures.json"
    assert (
        cli.main(
            ["evaluate", "--model", str(out), "--data", str(data / "cifar10_heldout10k.npz"), "--json", str(figures)]
        )
        == 0
    )
    assert json.loads(figures.read_text())["top1"] == result["top1"]
    assert train(out, "--epochs", 20, "--lr", 0.2) == 2
    assert "lr (0.1, now 0.2)" in capsys.readouterr().err


def test_a_killed_training_ends_with_the_same_bits(train, script, tmp_path, monkeypatch):
    assert train(tmp_path / "whole", "--epochs", 2) == 0
    trainer = script("train_teacher").LabelTrainer
    advance = trainer.advance

    def killed(self):
        if self.step == 5:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(trainer, "advance", killed)
    assert train(tmp_path / "killed", "--epochs", 2, "--checkpoint-every", 2) == 130
    assert not (tmp_path / "killed" / "result.json").exists()
    monkeypatch.undo()
    assert train(tmp_path / "killed", "--epochs", 2, "--checkpoint-every", 2) == 0
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_a_class_that_the_test_has_and_the_data_has_not_is_refused(train, data, tmp_path, capsys):
    arrays = dict(np.load(data / "cifar10_heldout10k.npz"))
    np.savez(data / "cifar10_heldout10k.npz", images=arrays["images"], labels=arrays["labels"] + 1)
    assert train(tmp_path / "teacher") == 2
    assert "labels from 1 to 10; the model has classes 0 to 9" in capsys.readouterr().err


def test_train_teacher__begin__a_smaller_network_has_the_layers_of_another_and_learns_on(train, tmp_path, capsys):
    assert train(tmp_path / "teacher", "--model", "cifar_resnet:depth=14,width=4", "--steps", 40, "--lr", 0.1) == 0
    assert train(tmp_path / "begun", "--begin", tmp_path / "teacher", "--steps", 1, "--lr", 1e-6) == 0
    assert "15 of the student's 15 layers begin as the teacher's" in capsys.readouterr().err.replace("\n", " ")
    of_teacher, begun = (load_file(tmp_path / name / "student.safetensors") for name in ("teacher", "begun"))
    torch.testing.assert_close(begun["conv1.weight"], of_teacher["conv1.weight"], rtol=0, atol=0.02)
    result = json.loads((tmp_path / "begun" / "result.json").read_text())
    assert result["steps"] == 1
