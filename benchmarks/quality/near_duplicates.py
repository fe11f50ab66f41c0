"""Similarity of the teacher's features of an image and its changed copy, which `dfkd select --deduplicate` relies on.

Usage:

    DFKD_DATA=data DFKD_TEACHERS=teachers python benchmarks/quality/near_duplicates.py
"""

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dfkd.config.stages.shared import Input
from dfkd.models.classifier import Classifier
from dfkd.models.features.find_taps import find_taps
from dfkd.models.load import load_model
from dfkd.select.diversity import near_duplicates
from dfkd.system.device import resolve_place

IMAGES = 4_000


def jpeg(image, quality=85):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def main():
    pixels = np.load(Path(os.environ["DFKD_DATA"]) / "pool_tiny_imagenet_32.npz", mmap_mode="r")["images"][:IMAGES]
    weights = f"{os.environ['DFKD_TEACHERS']}/cifar10_resnet20_w32_train40k.pt"
    model = load_model(f"cifar_resnet:depth=20,width=32@{weights}", Input("cifar10"))
    taps = find_taps(model.module, torch.zeros(1, 3, 32, 32), wanted=("last",)).taps
    teacher = Classifier(model, resolve_place("auto", "auto"), taps)

    def unit_features(images):
        batches = torch.from_numpy(np.ascontiguousarray(images)).split(250)
        features = torch.cat([teacher(batch).features["last"].float() for batch in batches]).numpy()
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    copies = {
        "brightness + 8": np.clip(pixels.astype(int) + 8, 0, 255).astype(np.uint8),
        "shifted by a pixel": np.roll(pixels, 1, axis=2),
        "mirrored": pixels[:, :, ::-1],
        "JPEG 85": np.stack([jpeg(image) for image in pixels]),
    }
    originals = unit_features(pixels)
    for name, changed in copies.items():
        similarity = (originals * unit_features(changed)).sum(axis=1)
        print(f"{name:<22}5 %, 50 %: {np.quantile(similarity, [0.05, 0.5]).round(3)}")
    others = originals @ originals.T
    np.fill_diagonal(others, -1)
    print(f"{'nearest other image':<22}5 %, 50 %, 95 %: {np.quantile(others.max(axis=1), [0.05, 0.5, 0.95]).round(3)}")
    print(f"dropped at 0.99: {near_duplicates(originals, 0.99).sum()} of {IMAGES}")


if __name__ == "__main__":
    main()
