"""Gain of torch.compile: the teacher's forward pass and the student's training step, eager and compiled, in one run.

    python benchmarks/speed/compiled.py OUT.json [TEACHER STUDENT]

The default networks are ResNet-20 of width 32 and of width 16, at 32 pixels, channels last. The precision is that of
`dfkd` on this machine. Weights and images are random, because neither decides the time. The forward pass (256 images)
is compiled twice: as it is, and with frozen weights, which folds BatchNorm and packs the weights. The step is forward
and backward of 128 images. Compilation is timed with an empty cache, and again with the cache of the first time on
disk, as the next command would find it. An addition is compiled first, to time separately what the first compilation
loads and prepares. Rounds alternate, so that a slow minute of the machine affects both. The script prints medians.
"""

import json
import os
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from ratios import row, seconds

from dfkd.config.stages.shared import Input
from dfkd.models.load import load_model
from dfkd.system.device import machine, resolve_place

NETWORKS = ("cifar_resnet:depth=20,width=32", "cifar_resnet:depth=20")
SIZE, ROUNDS, REPEATS = 32, 5, 4


def forward(network, images, place):
    """Return a function without arguments that runs the teacher's forward pass."""

    def run():
        with torch.no_grad(), place.autocast():
            return network(images).float()

    return run


def step(network, images, place):
    """Return a function without arguments that runs the student's forward and backward pass, and returns the loss."""
    target = torch.randn(len(images), 10, device=images.device).softmax(dim=1)

    def run():
        with place.autocast():
            answer = network(images).float()
        loss = F.kl_div(answer.log_softmax(dim=1), target, reduction="batchmean")
        network.zero_grad()
        loss.backward()
        return loss.detach()

    return run


def measure(what, kind, network, batch, place, start, **options):
    """Return a row: images per second compiled and eager, cost of compiling, and number of images from which it pays.

    `start` is the time in seconds that the first compilation of a process costs in addition.
    """
    images = torch.randn(batch, 3, SIZE, SIZE).to(place.device, memory_format=torch.channels_last)
    costs = []
    for _ in range(2):
        torch.compiler.reset()  # clears the memory; the second time finds the cache on disk
        torch.manual_seed(0)  # the step's target
        compiled = kind(torch.compile(network, options=options), images, place)
        costs.append(round(seconds(compiled), 1))
    torch.manual_seed(0)
    eager = kind(network, images, place)
    difference = float((compiled() - eager()).abs().max())
    rounds = []
    for _ in range(ROUNDS):
        times = [seconds(lambda run=run: waited(run)) for run in (compiled, eager)]
        rounds.append(tuple(REPEATS * batch / time for time in times))
    found = row(what, rounds)
    found = {{"dfkd": "compiled", "bare": "eager"}.get(key, key): value for key, value in found.items()}
    gained = 1 / found["eager"] - 1 / found["compiled"]  # seconds an image
    found |= {"first_seconds": costs[0], "from_cache_seconds": costs[1], "difference": difference}
    return found | {"pays_after_images": round((start + costs[0]) / gained) if gained > 0 else None}


def waited(run):
    """Call `run` a few times, and wait for the device."""
    for _ in range(REPEATS):
        answer = run()
    answer.sum().item()


def main():
    if len(sys.argv) not in (2, 4):
        sys.exit(__doc__)
    out, named = Path(sys.argv[1]), sys.argv[2:] or NETWORKS
    place = resolve_place("auto", "auto")
    torch.manual_seed(0)
    modules = (load_model(text, Input(image_size=SIZE), classes=10, channels=3).module for text in named)
    teacher, student = (module.to(place.device).to(memory_format=torch.channels_last) for module in modules)
    teacher.requires_grad_(False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # compiler processes may still be writing
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        start = round(seconds(lambda: torch.compile(lambda x: x + 1)(torch.zeros(8, device=place.device))), 1)
        rows = [
            measure("teacher's forward", forward, teacher.eval(), 256, place, start),
            measure("teacher's forward, frozen", forward, teacher.eval(), 256, place, start, freezing=True),
            measure("student's step", step, student.train(), 128, place, start),
        ]
    print(f"the first compilation of all: {start} s")
    print(f"{'images/s':<28}{'compiled':>10}{'eager':>10}{'ratio':>8}{'first s':>10}{'cached s':>10}{'pays after':>12}")
    for r in rows:
        costs = f"{r['first_seconds']:>10}{r['from_cache_seconds']:>10}{r['pays_after_images'] or 'never':>12}"
        print(f"{r['what']:<28}{r['compiled']:>10.1f}{r['eager']:>10.1f}{r['ratio']:>8.3f}{costs}")
    result = {"command": "benchmarks/speed/compiled.py", "date": str(date.today()), **place.describe()}
    result |= machine(place.device) | {"start_seconds": start}
    out.write_text(json.dumps({**result, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
