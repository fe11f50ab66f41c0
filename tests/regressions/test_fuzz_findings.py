"""What the fuzzer found once (`benchmarks/reliability/fuzz.py`): every input is read or refused as documented."""

import importlib.util
from pathlib import Path

import pytest

from dfkd import console

HERE = Path(__file__).parent
INPUTS = sorted((HERE / "inputs").glob("*/*.bin"))


@pytest.fixture(scope="module")
def targets():
    path = HERE.parents[1] / "benchmarks" / "reliability" / "targets.py"
    spec = importlib.util.spec_from_file_location("fuzz_targets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    module.close()


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_finding_is_mended(targets, path, monkeypatch):
    monkeypatch.setattr(console, "say", lambda line: None)
    targets.TARGETS[path.parent.name](path.read_bytes())


def test_every_target_reads_its_seeds(targets):
    for name, target in targets.TARGETS.items():
        seeds = targets.seeds(name)
        assert seeds, name
        for data in seeds:
            target(data)
