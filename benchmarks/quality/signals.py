"""Signals from one forward pass of a teacher, and how well each tells photos from the junk of a heap.

    DFKD_DATA=data DFKD_TEACHERS=teachers python benchmarks/quality/signals.py [FILE.json] [--images N]

The pool is N images (default 10,000) of heap-20 of heaps.py, drawn at random. For two teachers and each signal:

    auc       the probability that a photo is ranked before an image of junk
    heap-20   the share of photos among the images that are ranked first, half as many as there are photos
    heap-2    the same where photos are 2 % of the images, for as many images as there are photos

Near-copies of photos count as photos. benchmarks/quality/LOG.md has the results.
"""

import argparse
import os
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dfkd.config.stages.shared import Input
from dfkd.models.load import load_model
from dfkd.system.console import progress
from dfkd.system.device import machine
from dfkd.system.files import write_json

TEACHERS = {
    "cifar10_resnet20_w32_train40k.pt": ("cifar_resnet:depth=20,width=32", "cifar10"),
    "cifar10_resnet20.th": ("cifar_resnet:depth=20", "imagenet"),
}
PHOTOS = ("photo", "recompressed", "shifted", "recolored")
HERE = Path(__file__).resolve().parent


@torch.no_grad()
def answers(text, normalize, images):
    """Return logits, features before the classifier, logits of the mirrored images, and three distances per layer.

    The distances are KL(N(m, v) || N(m', v')), its part of the means and its part of the variances. Each is a mean over
    the channels.
    """
    model = load_model(text, Input(normalize, 32))
    layers = [layer for layer in model.module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    last = [layer for layer in model.module.modules() if isinstance(layer, torch.nn.Linear)][-1]
    distances, features, found = [], [], []

    def measure(layer, inputs):
        variance, mean = torch.var_mean(inputs[0], dim=(2, 3), correction=0)
        known = layer.running_var + layer.eps
        ratio = (variance + layer.eps) / known
        means, variances = (mean - layer.running_mean).square() / known / 2, (ratio - ratio.log() - 1) / 2
        distances.append(torch.stack([means + variances, means, variances], dim=-1).mean(1))

    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    hooks.append(last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0])))
    with progress(f"asking {model.spec}", len(images), "images") as bar:
        for batch in torch.from_numpy(images).split(250):
            view = model.preprocess(batch).contiguous(memory_format=torch.channels_last)
            features.clear(), distances.clear()
            logits = model.module(view)
            kept = features[0], torch.stack(distances, 1)
            found.append((logits, kept[0], model.module(view.flip(3)), kept[1]))
            bar.advance(len(batch))
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts).double().numpy() for parts in zip(*found, strict=True)]


def log_softmax(logits):
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def signals(logits, features, mirrored, distances):
    """Return each signal by its name. An image with a larger value is ranked first."""
    ours, theirs = log_softmax(logits), log_softmax(mirrored)
    p, q = np.exp(ours), np.exp(theirs)
    mean = (p + q) / 2
    divergence = (p * (ours - np.log(mean)) + q * (theirs - np.log(mean))).sum(1) / 2
    kl, means, variances = np.moveaxis(distances, -1, 0)
    confidence = p.max(1)
    counts = np.bincount(p.argmax(1), minlength=p.shape[1])
    share = (counts / counts.max())[p.argmax(1)]
    return {
        "confidence (DFND)": confidence,
        "entropy, lowest": (p * ours).sum(1),
        "KD3: confidence over its class's threshold": confidence / (0.95 * share / (2 - share)),
        "largest logit": logits.max(1),
        "energy": np.logaddexp.reduce(logits, axis=1),
        "norm of the features": np.linalg.norm(features, axis=1),
        "agreement with the mirrored image": -divergence,
        "BatchNorm: mean over layers": -kl.mean(1),
        "BatchNorm: mean of logarithms": -np.log(kl).mean(1),
        "BatchNorm: largest layer": -kl.max(1),
        "BatchNorm: root of mean square (statistics)": -np.sqrt((kl**2).mean(1)),
        "BatchNorm: the same, means alone": -np.sqrt((means**2).mean(1)),
        "BatchNorm: the same, variances alone": -np.sqrt((variances**2).mean(1)),
        "BatchNorm: the first layer": -kl[:, 0],
        "BatchNorm: the last layer": -kl[:, -1],
        "statistics and confidence, sum of ranks": ranks(-np.sqrt((kl**2).mean(1))) + ranks(confidence),
    }


def ranks(values):
    return values.argsort(kind="stable").argsort(kind="stable")


def auc(values, photo):
    """Return the area under the ROC curve. Ties count by their order in the pool, which is random."""
    ones = photo.sum()
    return (ranks(values)[photo].sum() - ones * (ones - 1) / 2) / (ones * (len(photo) - ones))


def share(values, photo, rows, count):
    """Return the share of photos among the `count` of `rows` with the largest values."""
    return photo[rows][np.argsort(-values[rows], kind="stable")[:count]].mean()


def judged(values, photo):
    some = np.flatnonzero(photo)[: round(0.02 / 0.98 * (~photo).sum())]
    heap_2 = partial(share, values, photo, np.sort(np.append(np.flatnonzero(~photo), some)))
    found = auc(values, photo), share(values, photo, np.arange(len(photo)), photo.sum() // 2), heap_2(len(some))
    return dict(zip(("auc", "heap-20", "heap-2"), (round(float(value), 3) for value in found), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=HERE / "signals.json")
    parser.add_argument("--images", type=int, default=10_000, metavar="N")
    args = parser.parse_args()
    heaps = Path(os.environ.get("DFKD_DATA", "data")) / "heaps"
    kinds = np.load(heaps / "heap-20-kinds.npz")
    rows = np.sort(np.random.default_rng(0).permutation(len(kinds["kind"]))[: args.images])
    images = np.load(heaps / "heap-20.npz", mmap_mode="r")["images"][rows]
    photo = np.isin(kinds["names"][kinds["kind"][rows]], PHOTOS)
    result = {"command": "python benchmarks/quality/signals.py", "date": str(date.today()), "images": len(rows)}
    result |= machine(torch.device("cpu")) | {"photos": int(photo.sum()), "teachers": {}}
    for file, (name, normalize) in TEACHERS.items():
        found = signals(*answers(f"{name}@{os.environ['DFKD_TEACHERS']}/{file}", normalize, images))
        result["teachers"][file] = {signal: judged(values, photo) for signal, values in found.items()}
        for signal, values in result["teachers"][file].items():
            print(f"{signal:<46}" + "  ".join(f"{name} {value:.3f}" for name, value in values.items()))
    write_json(args.file, result)


if __name__ == "__main__":
    main()
