import pytest
import torch

from dfkd.distill.augment import crop_and_flip, mixup


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(n, side, channels=2):
    """Every pixel has its own value, so that a view shows where it came from."""
    return (torch.arange(side * side * channels) % 255 + 1).byte().reshape(1, side, side, channels).repeat(n, 1, 1, 1)


def test_every_view_is_a_window_of_the_padded_image_mirrored_or_not():
    pixels = numbered(300, 6)
    views = crop_and_flip(pixels, 2, True, seeded())
    padded = torch.zeros(10, 10, 2, dtype=torch.uint8)
    padded[2:8, 2:8] = pixels[0]
    windows = {}
    for top in range(5):
        for left in range(5):
            window = padded[top : top + 6, left : left + 6]
            windows[window.numpy().tobytes()] = (top, left, False)
            windows[window.flip(1).numpy().tobytes()] = (top, left, True)
    seen = [windows[view.numpy().tobytes()] for view in views]  # a KeyError: no such window
    assert len({(top, left) for top, left, _ in seen}) == 25
    assert 0.4 < sum(mirrored for *_, mirrored in seen) / 300 < 0.6


def test_nothing_asked_nothing_done():
    pixels = numbered(4, 5)
    assert torch.equal(crop_and_flip(pixels, 0, False, seeded()), pixels)


def test_the_same_generator_gives_the_same_views():
    pixels = numbered(64, 6)
    assert torch.equal(crop_and_flip(pixels, 2, True, seeded(3)), crop_and_flip(pixels, 2, True, seeded(3)))
    assert not torch.equal(crop_and_flip(pixels, 2, True, seeded(3)), crop_and_flip(pixels, 2, True, seeded(4)))


def test_mixup_takes_convex_pairs():
    view = torch.eye(8)[:, :, None, None].repeat(1, 1, 2, 2)
    mixed = mixup(view, 1.0, seeded())
    assert torch.allclose(mixed.sum(dim=1), torch.ones(8, 2, 2))
    assert (mixed >= 0).all()
    assert ((mixed[:, :, 0, 0] > 0).sum(dim=1) <= 2).all()
    weights = torch.cat(
        [mixup(torch.eye(200)[:, :, None, None], 0.4, seeded(s)).amax(dim=1).flatten() for s in range(5)]
    )
    assert weights.mean().item() == pytest.approx(0.83, abs=0.03)  # E max(w, 1 - w) for Beta(0.4, 0.4)
