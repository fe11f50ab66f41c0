import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dfkd.config.stages.shared import Input
from dfkd.models import cifar_resnet
from dfkd.models.features.image_distance import ImageDistances
from dfkd.models.load import load_model


@pytest.fixture
def signals(script):
    return script("signals")


def test_judged__is_the_share_of_photos_among_the_first(signals):
    rng = np.random.default_rng(0)
    photo = rng.random(400) < 0.3
    values = rng.normal(size=400) + photo
    pairs = values[photo][:, None] > values[~photo]
    found = signals.judged(values, photo)
    assert found["auc"] == pytest.approx(pairs.mean(), abs=1e-3)
    assert found["heap-20"] == pytest.approx(photo[np.argsort(-values)[: photo.sum() // 2]].mean(), abs=1e-3)
    assert signals.judged(photo.astype(float), photo) == {"auc": 1, "heap-20": 1, "heap-2": 1}


def test_signals__of_a_heap_are_written_for_each_teacher(signals, tmp_path, monkeypatch):
    rng, network = np.random.default_rng(0), cifar_resnet(depth=8, width=4)
    images = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "heaps").mkdir()
    np.savez(tmp_path / "heaps" / "heap-20.npz", images=images)
    kinds = {"names": np.array(["photo", "noise"]), "kind": (np.arange(60) % 5 > 0).astype(np.int8)}
    np.savez(tmp_path / "heaps" / "heap-20-kinds.npz", **kinds)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    text = f"cifar_resnet:depth=8,width=4@{tmp_path}/net.safetensors"
    monkeypatch.setenv("DFKD_DATA", str(tmp_path))
    monkeypatch.setenv("DFKD_TEACHERS", str(tmp_path))
    monkeypatch.setattr(signals, "TEACHERS", {"net.safetensors": ("cifar_resnet:depth=8,width=4", "none")})
    monkeypatch.setattr(sys, "argv", ["signals.py", str(tmp_path / "found.json")])
    signals.main()
    result = json.loads((tmp_path / "found.json").read_text())
    assert (result["images"], result["photos"]) == (60, 12)
    assert all(0 <= figure <= 1 for row in result["teachers"]["net.safetensors"].values() for figure in row.values())

    logits, features, mirrored, distances = signals.answers(text, "none", images)
    found = signals.signals(logits, features, mirrored, distances)["BatchNorm: root of mean square (statistics)"]
    model = load_model(text, Input("none", 32))
    with (measured := ImageDistances(model.module)).watched():
        model.module(model.preprocess(torch.from_numpy(images)))
    np.testing.assert_allclose(-found, measured.take(60), rtol=1e-4)
