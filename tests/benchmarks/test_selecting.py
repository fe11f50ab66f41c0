"""`select` against bare loops, on a few images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from dfkd.models import cifar_resnet

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "selecting.py"


def test_rows_for_raw_pools_and_for_jpegs(tmp_path, data):
    for name, network in {
        "cifar10_resnet20_w32_train40k.pt": cifar_resnet(20, width=32),
        "cifar10_resnet56.th": cifar_resnet(56),
    }.items():
        torch.save(network.state_dict(), tmp_path / name)
    command = [sys.executable, str(SCRIPT), str(tmp_path / "selecting.json"), "20", "6"]
    environment = {**os.environ, "DFKD_DATA": str(data), "DFKD_TEACHERS": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    *raw, jpeg = json.loads((tmp_path / "selecting.json").read_text())["rows"]
    assert [row["what"].split(",")[1].strip() for row in raw] == ["ResNet-20 of width 32", "ResNet-56"]
    for row in (*raw, jpeg):
        assert 0 < row["dfkd"] < row["bare"]  # so few images pay for the rest of the command
        assert sorted(row["ratios"])[1] == row["ratio"] < 1
    assert jpeg["bare"] <= min(jpeg["teacher_alone"], jpeg["decoding_alone"]) + 0.01
    assert jpeg["of_both_after_another"] > 0
