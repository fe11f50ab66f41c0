import numpy as np
import pytest
import torch

from dfkd.system import portable

torch.set_num_threads(1)  # two threads that wait for each other are slower on networks of this size


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's cache, and none sees another's."""
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _own_names(monkeypatch):
    """No test's `$NAME` stands in what another stores: tests run in any order, a command in a process of its own."""
    monkeypatch.setattr(portable, "_filled", {})


@pytest.fixture
def rng():
    return np.random.default_rng(0)
