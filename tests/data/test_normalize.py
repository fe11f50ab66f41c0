import numpy as np
import pytest
import torch

from dfkd.data.images.normalize import Normalization, parse_normalize
from dfkd.system.errors import RequestError


def test_normalizes_each_channel_and_gives_channels_last(rng):
    pixels = rng.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    mean, std = parse_normalize("cifar10", 3)
    view = Normalization(mean, std)(torch.from_numpy(pixels))
    expected = ((pixels / 255.0 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    assert view.shape == (3, 3, 4, 5)
    assert view.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(view.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "channels", "expected"),
    [
        ("none", 3, ((0.0,) * 3, (1.0,) * 3)),
        ("imagenet", 1, ((0.449,), (0.226,))),
        ("0.5/0.25", 3, ((0.5,) * 3, (0.25,) * 3)),
        ("0.1,0.2,0.3/1,2,3", 3, ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))),
    ],
)
def test_parse_normalize(text, channels, expected):
    for got, wanted in zip(parse_normalize(text, channels), expected, strict=True):
        assert got == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cifar1", "did you mean 'cifar10'"),
        ("0.5/0", "not above 0"),
        ("0.5,0.5/1,1", "2/2 values; the model has 3"),
        ("a/b", "is not m,m,m/s,s,s"),
    ],
)
def test_parse_normalize_names_what_is_wrong(text, said):
    with pytest.raises(RequestError, match=said):
        parse_normalize(text, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_preprocess__computes_a_row_at_a_time_what_it_would_a_pixel_at_a_time(channels):
    pixels = torch.randint(0, 256, (2, 5, 7, channels), dtype=torch.uint8)
    mean, std = parse_normalize("imagenet", channels)
    expected = (pixels - torch.tensor(mean) * 255) / (torch.tensor(std) * 255)
    assert torch.equal(Normalization(mean, std)(pixels), expected.permute(0, 3, 1, 2))
