"""Commands with `--engine ray` and two workers on this machine: `ray_together.py` is a program that checks them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_engine_ray__gives_what_one_process_gives_also_where_a_worker_is_killed(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = Path(__file__).with_name("ray_together.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "of 4 stages 3 are complete; failed: none-seed0" in done.stderr
    titles = [line.partition(":")[0] for line in done.stderr.splitlines() if line.startswith("[")]
    assert titles[:2] == ["[1/4] select some-seed0", "[2/4] distill kd-seed0"]
    assert titles[2] == "[3/4] distill more-seed0"
