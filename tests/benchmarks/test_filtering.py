"""What a filter costs, on a few images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from dfkd.models import cifar_resnet

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed" / "filtering.py"


def test_rows_for_scoring_and_for_the_fit(tmp_path, data):
    torch.save(cifar_resnet(20, width=32).state_dict(), tmp_path / "cifar10_resnet20_w32_train40k.pt")
    torch.save(cifar_resnet(56).state_dict(), tmp_path / "cifar10_resnet56.th")
    environment = {**os.environ, "DFKD_DATA": str(data), "DFKD_TEACHERS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "filtering.json"), "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "filtering.json").read_text())["rows"]
    assert [row["what"].split(":")[0] for row in rows] == ["ResNet-20 of width 32"] * 2 + ["ResNet-56"] * 2
    for scored, fit in zip(rows[::2], rows[1::2], strict=True):
        assert min(scored["dfkd"], scored["bare"]) > 0
        assert fit["bare"] == 20 < fit["dfkd"]  # 60 steps of 64 images take longer than to score 20
        assert sorted(fit["ratios"])[1] == fit["ratio"]
