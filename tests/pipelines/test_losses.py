"""Three steps of the real command with every loss, and what must not happen on the way."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dfkd.distill import losses
from dfkd.models import cifar_resnet, wide_resnet

STEPS = ("--steps", 3, "--batch-size", 8, "--log-every", 1, "--init", "none")
SPECS = {
    "FT": "ft:paraphraser=1",
    "Codistillation": "codistillation:burn_in=0",
}  # else it would prepare itself until the end, which is refused


@pytest.mark.parametrize("name", sorted(losses.__all__, key=str.lower))
def test_three_steps(lab, selection, tmp_path, name):
    beside = ("--also", f"--student-seed 1 --out {tmp_path / 'other'}") if getattr(losses, name).reads_peers else ()
    assert lab.distill(selection, tmp_path / "run", *STEPS, "--loss", SPECS.get(name, name.lower()), *beside) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    values = [row[name.lower()] for row in rows]
    assert len({*values}) == 3, "the batches differ"
    # nothing of the loss is part of the student
    assert set(load_file(tmp_path / "run" / "student.safetensors")) == set(cifar_resnet(8, width=4).state_dict())


def test_all_losses_at_once_on_a_student_of_another_family(lab, selection, tmp_path):
    all_of_one = [name for name in losses.__all__ if not getattr(losses, name).reads_peers]
    names = [name.lower() for name in all_of_one]
    specs = [SPECS.get(name, name.lower()) for name in all_of_one]
    student = ("--student", "wide_resnet:depth=10,width=1", "--samples", selection, "--out", tmp_path / "run")
    common = ("--teacher", lab.teacher, "--precision", "fp32", *STEPS)
    assert lab.dfkd("distill", *common, *student, "--loss", *specs) == 0
    expected = wide_resnet(10, 1, num_classes=10, in_channels=1).state_dict()
    assert set(load_file(tmp_path / "run" / "student.safetensors")) == set(expected)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {*names} <= row.keys()


def test_byot__heads_are_measured_as_early_exits(lab, selection, tmp_path):
    run, common = tmp_path / "run", ("--steps", 2, "--batch-size", 16, "--loss", "byot", "--test")
    assert lab.distill(selection, run, *common, lab.heldout) == 0
    exits = json.loads((run / "result.json").read_text())["exits"]
    assert len(exits) == 2 and all(0 < top1 < 1 and (top1 * 400) % 1 == pytest.approx(0, abs=1e-6) for top1 in exits)
    assert set(load_file(run / "student.safetensors")) == set(cifar_resnet(8, width=4).state_dict())
    assert lab.dfkd("compare", run, "--out", tmp_path / "report.html") == 0
    assert f"{100 * exits[1]:.1f}" in (tmp_path / "report.html").read_text().partition("Early exits")[2]
    assert "exit_1_top1,exit_2_top1" in (tmp_path / "report.csv").read_text()
    with np.load(lab.heldout) as data:
        np.savez(tmp_path / "half.npz", images=data["images"][:200], labels=data["labels"][:200])
    assert lab.distill(selection, run, *common, tmp_path / "half.npz") == 0
    assert "exits" not in json.loads((run / "result.json").read_text()), "the heads are gone, and the images others"


@pytest.mark.parametrize("loss", ["crd", "ft:paraphraser=3", "ofd", "bss:steps=3,samples=4"])
def test_a_loss_with_a_memory_resumes_bit_for_bit(lab, selection, tmp_path, loss):
    """Buffers, counters and random numbers of the losses are in the checkpoint."""
    common = ("--batch-size", 8, "--checkpoint-every", 2, "--loss", "kd", loss, "--init", "none")
    assert lab.distill(selection, tmp_path / "whole", "--steps", 6, *common) == 0
    with pytest.MonkeyPatch.context() as patch:
        from dfkd.distill.trainer import Trainer

        advance = Trainer.advance

        def stop(self):
            if self.step == 5:  # after the checkpoint of step 4
                raise RuntimeError("the power went out")
            return advance(self)

        patch.setattr(Trainer, "advance", stop)
        with pytest.raises(RuntimeError, match="the power"):
            lab.distill(selection, tmp_path / "broken", "--steps", 6, *common)
    assert lab.distill(selection, tmp_path / "broken", "--steps", 6, *common) == 0
    whole, broken = (load_file(tmp_path / run / "student.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


def test_what_a_loss_asks_of_the_teacher_is_counted_over_an_interruption(lab, selection, tmp_path, monkeypatch):
    from dfkd.distill.trainer import Trainer

    advance = Trainer.advance
    flags = (*STEPS, "--checkpoint-every", 1, "--loss", "kd", "bss:steps=4,samples=4")

    def stop(self):
        if self.step == 2:
            raise RuntimeError("the power went out")
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", stop)
        with pytest.raises(RuntimeError, match="the power"):
            lab.distill(selection, tmp_path / "run", *flags)
    assert lab.distill(selection, tmp_path / "run", *flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["teacher_forwards"] == 3 * (8 + 4 * (4 + 1))
