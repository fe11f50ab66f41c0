"""Cost of a step with each loss, beside the same step with KL alone, in one run on one machine.

    python benchmarks/speed/losses.py OUT.json [NAME ...]

A ResNet-20 of width 32 teaches one of width 16 at 32 pixels in batches of 128. Weights and images are random, because
neither decides the time. Each loss is added to `kd`. Rounds of both alternate, so that a slow minute of the machine
affects both. The script prints the median of the rounds' ratios.
"""

import json
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.torch import save_file

from dfkd.config import DistillConfig, SelectConfig
from dfkd.distill import losses
from dfkd.distill.prepare import prepare
from dfkd.models import cifar_resnet
from dfkd.select import stage as select
from dfkd.system.device import machine, resolve_place

TEACHER, STUDENT = "cifar_resnet:depth=20,width=32", "cifar_resnet:depth=20"
IMAGES, STEPS, ROUNDS = 17_000, 6, 3  # more images than crd draws as negatives
SPELLED = {"ft": "ft:paraphraser=1"}  # its preparation is not part of a step


def make_selection(folder):
    """Write a random teacher and a selection of noise images."""
    torch.manual_seed(0)
    save_file(cifar_resnet(depth=20, width=32).state_dict(), folder / "teacher.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "pool.npz", images=images)
    teacher = f"{TEACHER}@{folder / 'teacher.safetensors'}"
    out = folder / "selection"
    options = {"pool": (str(folder / "pool.npz"),), "filter": "none", "method": "random", "count": IMAGES}
    select.run(SelectConfig(teacher=teacher, normalize="cifar10", out=str(out), **options))
    return teacher, out


def trainer_with(teacher, samples, loss):
    """Return a trainer in training mode, warmed up by one step."""
    config = DistillConfig(teacher=teacher, student=STUDENT, samples=(str(samples),), out="", init="none", loss=loss)
    trainer = prepare(config, config.teacher, config.student, None).trainer
    trainer.student.module.train()
    trainer.advance()
    return trainer


def seconds(trainer):
    """Return the seconds of a few steps, with a wait for the device."""
    started = time.perf_counter()
    for _ in range(STEPS):
        metrics = trainer.advance()
    metrics["loss"].item()
    return time.perf_counter() - started


def main():
    of_one = [name.lower() for name in losses.__all__ if name != "KD" and not getattr(losses, name).reads_peers]
    out, wanted = Path(sys.argv[1]), sys.argv[2:] or of_one
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        teacher, samples = make_selection(Path(folder))
        for name in wanted:
            plain, with_it = (
                trainer_with(teacher, samples, loss) for loss in (("kd",), ("kd", SPELLED.get(name, name)))
            )
            rounds = [(seconds(with_it), seconds(plain)) for _ in range(ROUNDS)]
            ratio = median(ours / theirs for ours, theirs in rounds)
            parameters = sum(p.numel() for p in with_it.objective.parameters())
            kd_ms = round(1000 * median(t for _, t in rounds) / STEPS, 1)
            rows[name] = {"ratio": round(ratio, 3), "kd_ms": kd_ms, "parameters": parameters}
            print(f"kd {name:<16}{ratio:6.2f} times a step of kd", flush=True)
    measured_on = machine(resolve_place("auto", "auto").device)
    result = {"command": "benchmarks/speed/losses.py", "date": str(date.today()), **measured_on, "losses": rows}
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
