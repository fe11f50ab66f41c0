import numpy as np
import pytest
import torch

from dfkd.data.images.filter import Filter, read_filter


def a_filter(rng, channels=3, size=3):
    weights = rng.normal(size=(channels, channels, size, size)) / 4
    return Filter(torch.tensor(weights).float(), torch.tensor(rng.normal(size=channels) / 8).float())


def by_hand(pixels, filter):
    """The sum over shifts, one at a time."""
    kernel, bias = filter.kernel.numpy(), filter.bias.numpy()
    reach = kernel.shape[-1] // 2
    wide = np.pad(pixels.astype(float), ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = pixels.shape[1:3]
    out = np.zeros(pixels.shape) + 255 * bias
    for y in range(kernel.shape[2]):
        for x in range(kernel.shape[3]):
            out += wide[:, y : y + height, x : x + width] @ kernel[:, :, y, x].T
    return out.clip(0, 255)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_pixels_are_the_sum_over_neighbours_and_channels(rng, channels, size):
    pixels = rng.integers(0, 256, size=(4, 6, 5, channels), dtype=np.uint8)
    filter = a_filter(rng, channels, size)
    found, expected = filter(pixels), by_hand(pixels, filter)
    assert found.dtype == np.uint8
    assert found.shape == pixels.shape
    assert np.abs(found - expected).max() <= 0.51  # rounded


def test_what_leaves_the_range_is_cut():
    pixels = np.array([0, 100, 200], np.uint8).reshape(1, 1, 3, 1)
    twice = Filter(torch.full((1, 1, 1, 1), 2.0), torch.tensor([-0.2]))
    assert twice(pixels).ravel().tolist() == [0, 149, 255]


def test_a_kernel_may_be_wider_than_the_image(rng):
    pixels = rng.integers(0, 256, size=(1, 2, 2, 1), dtype=np.uint8)
    filter = a_filter(rng, 1, 7)
    assert np.abs(filter(pixels) - by_hand(pixels, filter)).max() <= 0.51


def test_what_is_described_is_read_again(rng):
    filter = a_filter(rng)
    again = read_filter({"inception_score": [1, 2], **filter.describe()}, 3)
    assert torch.equal(again.kernel, filter.kernel)
    assert torch.equal(again.bias, filter.bias)
    assert read_filter({"inception_score": [1, 2]}, 3) is None


@pytest.mark.parametrize(
    ("damage", "channels"),
    [
        ({}, 1),
        ({"bias": [0.0]}, 3),
        ({"bias": [0.0, 0.0, float("nan")]}, 3),
        ({"kernel": [[[[1.0]]]]}, 3),
        ({"kernel": 1.0}, 3),
        ({"kernel": [[1.0], [1.0, 2.0]]}, 3),
        ({"kernel": torch.zeros(3, 3, 2, 2).tolist()}, 3),
        ({"bias": None}, 3),
        ({"bias": {"0": 1.0}}, 3),
        ({"bias": [10**400, 0, 0]}, 3),
        ({"bias": ["a", 0, 0]}, 3),
        ({"kernel": {}}, 3),
    ],
)
def test_what_is_no_filter_is_not_read(rng, damage, channels):
    with pytest.raises((ValueError, TypeError)):
        read_filter({**a_filter(rng).describe(), **damage}, channels)


def test_what_is_missing_is_not_read(rng):
    with pytest.raises(KeyError):
        read_filter({"kernel": a_filter(rng).describe()["kernel"]}, 3)
