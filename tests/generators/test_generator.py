"""The generator's network."""

import pytest
import torch

from dfkd.generators.generator import CONTRAST, Generator


@pytest.mark.parametrize("contrast", [False, True])
def test_with_contrast_no_bias_makes_all_pixels_alike(contrast):
    torch.manual_seed(0)
    network = Generator(latent=6, size=10, channels=3, width=4, contrast=contrast)
    last = [layer for layer in network if isinstance(layer, torch.nn.Conv2d)][-1]
    torch.nn.init.constant_(last.bias, 20)
    images = network(torch.randn(32, 6))
    assert images.shape == (32, 3, 10, 10) and images.min() >= 0 and images.max() <= 1
    before = images.detach().double().logit(eps=1e-9)
    if contrast:
        assert torch.allclose(before.mean(dim=(0, 2, 3)), torch.zeros(3).double(), atol=1e-3)
        assert torch.allclose(before.std(dim=(0, 2, 3)), torch.full((3,), CONTRAST).double(), rtol=0.01)
    else:
        assert images.min() > 0.99
