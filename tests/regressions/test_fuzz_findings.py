"""What the fuzzer found once (`benchmarks/reliability/fuzz.py`): every input is read or refused as documented."""

import functools
import importlib.util
import json
import operator
import sys
from pathlib import Path

import pytest

from dfkd.system import console

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
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        return importlib.import_module("benchmarks.reliability.targets")


@pytest.fixture(scope="module")
def seeds(targets):
    return importlib.import_module("benchmarks.reliability.seeds").SEEDS


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_finding_is_mended(targets, path, monkeypatch):
    monkeypatch.setattr(console, "say", lambda line: None)
    targets.TARGETS[path.parent.name](path.read_bytes())


def test_every_target_reads_its_seeds(targets, seeds):
    assert seeds.keys() == targets.TARGETS.keys()
    for name, target in targets.TARGETS.items():
        inputs = seeds[name]()
        assert inputs, name
        for data in inputs:
            target(data)


WRONG = [None, True, 0, -1, 1.5, float("nan"), 10**400, "x", [], [1], [[]], {}, {"a": 1}, [None]]


def places(value, path=()):
    """The path of every value within tables and lists."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def test_any_value_of_a_manifest_may_be_wrong_or_missing(targets, seeds):
    whole = json.loads(seeds["manifest"]()[0])
    del whole["checksum"]  # the target puts it right
    tried = 0
    for *above, last in places(whole):
        for wrong in (*WRONG, places):
            manifest = json.loads(json.dumps(whole))
            table = functools.reduce(operator.getitem, above, manifest)
            if wrong is places:
                del table[last]
            else:
                table[last] = wrong
            targets.TARGETS["manifest"](json.dumps(manifest).encode())
            tried += 1
    assert tried > 1000


def test_the_page_has_the_figures_of_the_last_run(targets, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    result = json.loads((ROOT / "benchmarks" / "reliability" / "results" / "fuzz.json").read_text(encoding="utf-8"))
    assert result["targets"].keys() == targets.TARGETS.keys()
    assert result["inputs"] == sum(one["inputs"] for one in result["targets"].values())
    assert load("fuzz").table(result) in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
