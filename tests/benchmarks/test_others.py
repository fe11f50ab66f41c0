"""What an engineer would write instead, with networks of the real shapes, batches of 8 images and one round."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from dfkd.models import cifar_resnet, lenet5

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"
SMALLER = """
import others
from concurrent.futures import ThreadPoolExecutor
others.BATCH, others.ROUNDS = 8, 1
others.EXECUTOR = lambda: ThreadPoolExecutor(1)  # torch is imported once, and not by every way
others.main()
"""


def test_others_compares_training_and_scoring(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "pool_tiny_imagenet_32.npz", images=images)
    torch.save(cifar_resnet(depth=20, width=32).state_dict(), tmp_path / "cifar10_resnet20_w32_train40k.pt")
    folders = {"DFKD_DATA": str(tmp_path), "DFKD_TEACHERS": str(tmp_path), "PYTHONPATH": str(SPEED)}
    command = [sys.executable, "-c", SMALLER, str(tmp_path / "others.json"), "17"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **folders})
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "others.json").read_text())
    assert result["images"] == 16  # whole batches
    ways = {"distill": ("transforms", "v2, channels last"), "select": ("map, torch", "map, PNG", "map, lists")}
    pairs = ("ResNet-20", "LeNet-5")
    asked = [f"{stage} {pair}: {way}" for pair in pairs for stage in ways for way in ways[stage]]
    asked.remove("select LeNet-5: map, lists")
    assert [row["what"] for row in result["rows"]] == asked
    for row in result["rows"]:  # images a second of both in the one round, and how often theirs go into ours
        assert row["dfkd"] > 0 < row["theirs"]
        assert row["ratios"] == [row["ratio"]]
        assert row["ratio"] == pytest.approx(row["dfkd"] / row["theirs"], rel=0.02)


def test_mapping_gives_the_scores_of_select(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SPEED)
    others = importlib.import_module("others")
    monkeypatch.setenv("DFKD_CACHE", "")  # set by the script: as it was, afterwards
    monkeypatch.setattr("dfkd.system.device._bf16_pays", lambda: False)  # which rounds as the layout is
    torch.manual_seed(0)
    save_file(lenet5(in_channels=3).state_dict(), tmp_path / "lenet.safetensors")
    teacher = f"lenet5:in_channels=3@{tmp_path / 'lenet.safetensors'}"
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    pool, *stored = others.store(images, tmp_path)
    scores = pq.read_table(others.selected(pool, 20, teacher, tmp_path) / "scores.parquet")
    for folder, format_of in zip([*stored, stored[0]], ["torch", None, None], strict=True):
        found = others.mapped(folder, format_of, teacher).with_format("numpy")
        np.testing.assert_allclose(found["confidence"], scores["confidence"], rtol=1e-5)
        np.testing.assert_array_equal(found["prediction"], scores["prediction"])
