"""Commands with `--engine ray`. `ray_together.py` and `ray_nodes.py` are programs that check them.

The first has two workers on this machine, the second a cluster of three nodes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(program, folder):
    """The finished process of a program beside this file."""
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name(program)), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_engine_ray__gives_what_one_process_gives_where_a_node_is_killed(tmp_path):
    run("ray_nodes.py", tmp_path)


@pytest.mark.slow
def test_engine_ray__gives_what_one_process_gives_also_where_a_worker_is_killed(tmp_path):
    done = run("ray_together.py", tmp_path)
    assert "of 4 stages 3 are complete; failed: none-seed0" in done.stderr
    titles = [line.partition(":")[0] for line in done.stderr.splitlines() if line.startswith("[")]
    assert titles[:2] == ["[1/4] select some-seed0", "[2/4] distill kd-seed0"]
    assert titles[2] == "[3/4] distill more-seed0"
