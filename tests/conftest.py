import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # two threads that wait for each other are slower on networks of this size


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's cache, and none sees another's."""
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def rng():
    return np.random.default_rng(0)
