"""Noise on which two forms of a network are compared."""

import torch

from dfkd.models.noise import noise


def test_noise__is_the_same_in_every_call_and_leaves_torchs_random_state() -> None:
    torch.manual_seed(1)
    first, state = noise(2, 3, 4), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert first.shape == (2, 3, 4, 4) and torch.equal(noise(2, 3, 4), first)
