"""What the fuzzer found once (`benchmarks/reliability/fuzz.py`): every input is read or refused as documented."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from dfkd import console

HERE = Path(__file__).parent
INPUTS = sorted((HERE / "inputs").glob("*/*.bin"))


ROOT = HERE.parents[1]


def load(name):
    """A module of the benchmarks, which are no package."""
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", ROOT / "benchmarks" / "reliability" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def targets():
    module = load("targets")
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


def test_the_page_has_the_figures_of_the_last_run(targets, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    result = json.loads((ROOT / "benchmarks" / "reliability" / "fuzz.json").read_text(encoding="utf-8"))
    assert result["targets"].keys() == targets.TARGETS.keys()
    assert result["inputs"] == sum(one["inputs"] for one in result["targets"].values())
    assert load("fuzz").table(result) in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
