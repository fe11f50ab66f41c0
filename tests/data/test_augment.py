import pytest
import torch

from dfkd.data.images import augment
from dfkd.data.images.augment import crop, crop_and_flip, draw_crops, enlarge, jitter, mix


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
    mixed = mix(view, 1.0, 0.0, seeded())
    assert torch.allclose(mixed.sum(dim=1), torch.ones(8, 2, 2))
    assert (mixed >= 0).all()
    assert ((mixed[:, :, 0, 0] > 0).sum(dim=1) <= 2).all()
    weights = torch.cat(
        [mix(torch.eye(200)[:, :, None, None], 0.4, 0.0, seeded(s)).amax(dim=1).flatten() for s in range(5)]
    )
    assert weights.mean().item() == pytest.approx(0.83, abs=0.03)  # E max(w, 1 - w) for Beta(0.4, 0.4)


def boxes(n, height, width, alpha):
    """The pixels that CutMix took from another image, for images that hold their own number (and its negative)."""
    numbers = torch.arange(1.0, n + 1)[:, None, None, None]
    view = torch.cat([numbers, -numbers], dim=1).repeat(1, 1, height, width)
    cut = mix(view, 0.0, alpha, seeded())
    assert torch.equal(cut[:, 0], -cut[:, 1])
    foreign = cut[:, 0] != view[:, 0]
    from_others = torch.where(foreign, cut[:, 0], 0).flatten(1)
    highest = from_others.amax(dim=1, keepdim=True)
    assert ((from_others == 0) | (from_others == highest)).all()  # all of a box is from one image
    assert set(highest.flatten().tolist()) <= set(range(n + 1))
    return foreign


def test_cutmix_fills_one_box_of_each_image_from_one_other():
    foreign = boxes(2000, 12, 24, 1.0)
    rows, columns = foreign.any(dim=2), foreign.any(dim=1)
    assert torch.equal(foreign, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):
        assert (line.int().diff(dim=1) == 1).sum(dim=1).max() <= 1  # one piece
    high, wide = rows.sum(dim=1), columns.sum(dim=1)
    assert (wide - 2 * high).abs().max() <= 1  # nothing of a box stands out of the image, so all have its proportions
    assert set(high.tolist()) == set(range(13))
    tops = rows[high == 4].int().argmax(dim=1)
    counts = torch.bincount(tops, minlength=9)  # anywhere, and nowhere more often
    assert counts.min() > 0 and counts.max() < 3 * counts.min()


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 0.75), (0.4, 0.83)])
def test_the_boxes_areas_follow_the_beta_distribution(alpha, expected):
    share = boxes(1500, 32, 32, alpha).float().mean(dim=(1, 2))
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.maximum(share, 1 - share).mean().item() == pytest.approx(expected, abs=0.02)


def test_with_both_each_image_takes_one_of_the_two():
    view = torch.eye(100)[:, :, None, None].repeat(1, 1, 8, 8)
    mixed = mix(view, 1.0, 1.0, seeded())
    assert torch.allclose(mixed.sum(dim=1), torch.ones(100, 8, 8))
    own = mixed[torch.arange(100), torch.arange(100)]
    cut = ((own == 0) | (own == 1)).all(dim=(1, 2))
    assert 0.35 < cut.float().mean() < 0.65
    assert (own[~cut] == own[~cut][:, :1, :1]).all()  # one weight for the whole of an image that is mixed up
    assert (own[cut].mean(dim=(1, 2)) % 1 > 0).float().mean() > 0.7  # a box may be the whole image, or empty
    assert torch.equal(mixed, mix(view, 1.0, 1.0, seeded()))
    assert not torch.equal(mixed, mix(view, 1.0, 1.0, seeded(1)))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])
def test_a_mixed_view_has_the_type_and_layout_of_the_view(mixup, cutmix):
    view = torch.rand(6, 3, 8, 8).to(memory_format=torch.channels_last)
    mixed = mix(view, mixup, cutmix, seeded())
    assert mixed.dtype == view.dtype and mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mixed, view) == (not mixup and not cutmix)


def test_a_window_of_a_ramp_is_a_ramp_of_its_size():
    """Of an image whose value is its column (or row), a window shows by its slope how large a part it is."""
    ramp = torch.arange(64.0).expand(64, 64)
    view = torch.stack([ramp, ramp.T])[None].repeat(400, 1, 1, 1)
    seen = enlarge(view, 0.25, seeded())
    assert seen.shape == view.shape and seen.min() >= 0 and seen.max() <= 63
    wide, high = (seen[:, 0, 32, 40] - seen[:, 0, 32, 24]) / 16, (seen[:, 1, 40, 32] - seen[:, 1, 24, 32]) / 16
    areas = wide * high
    assert 0.24 < areas.min() < 0.3 and 0.9 < areas.max() < 1.01
    assert (wide / high).max() < 4 / 3 + 0.02 and (wide / high).min() > 3 / 4 - 0.02
    assert enlarge(view, 1.0, seeded()) is view


def test_jitter__changes_brightness_contrast_and_saturation():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(64, 3, 8, 8, generator=generator) / 2 + 0.25
    found = jitter(images, 0.2, generator)
    assert found.min() >= 0 and found.max() <= 1
    ratios = found.mean(dim=(1, 2, 3)) / images.mean(dim=(1, 2, 3))
    assert 0.75 < ratios.min() < 0.85 and 1.15 < ratios.max() < 1.25  # brightness; the others keep the mean luma
    spread = found.std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    assert spread.min() < 0.8 and spread.max() > 1.2
    gray = images[:, :1].expand(-1, 3, -1, -1)
    one = jitter(gray, 0.5, torch.Generator().manual_seed(2))
    assert torch.allclose(one[:, 0], one[:, 2])  # gray stays gray
    assert jitter(images[:, :1], 0.5, generator).shape == (64, 1, 8, 8)


@pytest.mark.parametrize(("padding", "channels"), [(0, 3), (4, 1), (9, 3)])
def test_crop__of_large_images_is_what_one_gather_gives(padding, channels, monkeypatch):
    pixels = torch.randint(0, 256, (12, 70, 90, channels), dtype=torch.uint8)
    crops = draw_crops(12, padding, True, torch.Generator().manual_seed(0), pixels.device)
    crops[:4, :2] = torch.tensor([[0, 0], [0, 2 * padding], [2 * padding, 0], [2 * padding, 2 * padding]])
    found = crop(pixels, padding, crops)
    monkeypatch.setattr(augment, "_BY_IMAGE", pixels.numel())
    assert torch.equal(found, crop(pixels, padding, crops))
    assert found.is_contiguous()


def test_crop__of_large_images_has_gradients():
    images = torch.rand(2, 70, 70, 3, requires_grad=True)
    crop(images, 4, torch.tensor([[0, 8, 1], [4, 4, 0]])).sum().backward()
    assert images.grad.sum() == 66 * 66 * 3 + 70 * 70 * 3
