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
    # of gradients that are rounding alone, as of biases before BatchNorm, Adam makes steps like of any
    weights = [key for key in one if key.startswith(("state.network", "state.canvas")) and one[key].ndim > 1]
    for key in weights:
        assert float((first[key] - one[key]).norm()) < 0.02 * float(one[key].norm()), key
    assert weights


def test_generator__exchanges_no_gradients_of_the_student(computed):
    """Counted are the numbers in the buckets of DistributedDataParallel: each parameter once in a student's step."""
    for rank in computed[1:]:
        counted = rank["source", "dfad"]
        assert counted["generator"] == 0
        assert counted["student"] == counted["parameters"] + 1, "and the one that is never used"
    assert computed[0]["source", "dfad"]["student"] == 0, "one process exchanges nothing"
