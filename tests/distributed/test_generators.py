"""One process and two learn the same images: each has the whole batch, and the networks answer to shares of it."""

import pytest
import torch

from dfkd import generators

NAMES = sorted(name.lower() for name in generators.__all__)
UPDATES = 3


@pytest.mark.parametrize("name", NAMES)
def test_generator__learns_the_same_in_two_processes_as_in_one(computed, name):
    one, first, second = (rank["generator", name] for rank in computed)
    assert one.keys() == first.keys()
    terms = [key for key in one if not key.startswith("state.")]
    assert len(terms) >= UPDATES
    for key in terms:
        assert first[key].item() == pytest.approx(one[key].item(), rel=1e-3, abs=1e-4), key
    assert all(torch.equal(first[key], second[key]) for key in one), "ranks go on from the same state"
    assert torch.equal(first["state.random"], one["state.random"])
    # biases before BatchNorm have no gradient but rounding, which Adam makes steps of
    weights = [key for key in one if key.startswith(("state.network", "state.canvas")) and one[key].ndim > 1]
    for key in weights:
        assert torch.allclose(first[key], one[key], rtol=1e-2, atol=2e-3 * float(one[key].abs().max())), key
    assert weights
