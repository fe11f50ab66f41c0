"""Near-copies by pixels: what counts as one, and how many images are read to find them."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from dfkd.app import junk
from dfkd.select import methods
from dfkd.select import near_copies as module
from dfkd.select.choose import SELECTED, choose
from dfkd.select.diversity import unit_rows
from dfkd.select.methods import ImageScores
from dfkd.select.near_copies import describe, mirrored, near_copies
from dfkd.system.errors import RequestError


@pytest.fixture(scope="module")
def photos():
    """Smooth images of 32 pixels with detail: sums of a few waves each."""
    rng = np.random.default_rng(0)
    down, across = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    waves = rng.uniform(-0.6, 0.6, (60, 6, 2))
    phases = waves[..., :1, None] * down + waves[..., 1:, None] * across + rng.uniform(0, 6, (60, 6, 1, 1))
    gray = np.sin(phases).sum(1)[..., None] * rng.uniform(15, 30, (60, 1, 1, 3)) + rng.uniform(90, 150, (60, 1, 1, 3))
    return gray.clip(0, 255).astype(np.uint8)


def similarity(one, other):
    return (unit_rows(describe(one)) * unit_rows(describe(other))).sum(axis=1)


def resized(photos, side):
    return np.stack([np.asarray(Image.fromarray(photo).resize((side, side))) for photo in photos])


def jpeg(photos):
    files = [io.BytesIO() for _ in photos]
    for photo, file in zip(photos, files, strict=True):
        Image.fromarray(photo).save(file, "JPEG", quality=20)
    return np.stack([np.asarray(Image.open(file)) for file in files])


@pytest.mark.parametrize(
    "copied",
    [
        jpeg,
        lambda photos: resized(photos, 100),
        lambda photos: (photos // 2 + 40).astype(np.uint8),
        lambda photos: np.repeat((photos @ [0.299, 0.587, 0.114])[..., None], 1, 3).astype(np.uint8),
    ],
    ids=["recompressed", "resized", "less contrast", "gray"],
)
def test_describe__a_copy_is_nearer_than_any_other_image(photos, copied):
    assert similarity(photos, copied(photos)).min() > 0.95
    units = unit_rows(describe(photos))
    others = np.array([units[a] @ units[b] for a, b in itertools.combinations(range(len(units)), 2)])
    assert np.quantile(others, 0.99) < 0.95


def test_describe__finds_most_recolored_copies(photos):
    assert (similarity(photos, junk.recolored(photos, np.random.default_rng(0))) > 0.95).mean() > 0.9


def test_describe__is_the_mean_luminance_of_each_cell_minus_that_of_the_image():
    image = np.zeros((1, 16, 16, 1), np.uint8)
    image[0, :2, :2] = 64  # the first of 8x8 cells
    cells = describe(image)[0]
    assert cells[0] == 63 and np.all(cells[1:] == -1)


@pytest.mark.parametrize("side", [8, 21, 224, 231])
def test_describe__has_the_cells_of_any_size(side):
    values = np.random.default_rng(side).integers(0, 256, (3, 8, 8)).astype(np.uint8)
    cell = np.searchsorted(np.arange(1, 9) * side // 8, np.arange(side), side="right")  # of each pixel
    drawn = values[:, cell][:, :, cell]
    expected = values - values.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(describe(drawn[..., None]), expected.reshape(3, 64), atol=1e-4)
    colored = np.stack([drawn, 0 * drawn, 0 * drawn], axis=3)
    np.testing.assert_allclose(describe(colored), 0.299 * expected.reshape(3, 64), atol=1e-4)


def test_describe__repeats_the_pixels_of_a_tiny_image():
    image = np.array([[0, 255]], np.uint8).reshape(1, 1, 2, 1)
    assert np.array_equal(describe(image).reshape(8, 8) > 0, np.arange(8)[None] // 4 == np.ones((8, 1)))


def test_near_copies__finds_a_mirrored_and_recompressed_copy(photos):
    both = np.concatenate([photos, jpeg(photos)[:, :, ::-1]])
    dropped = near_copies(np.arange(120), lambda rows: describe(both[rows]), 0.95)
    assert dropped[60:].all() and dropped[:60].sum() <= 1


@pytest.mark.parametrize("piece", [1_000, 37])
def test_near_copies__compares_nearly_symmetric_images_with_the_mirror_of_what_is_kept(monkeypatch, piece):
    """An image that is like its own mirror does not hide that mirror, and a dropped image's mirror drops none."""
    monkeypatch.setattr(module, "PIECE", piece)
    rng = np.random.default_rng(10)
    base = rng.normal(size=(400, 64))
    base += rng.uniform(0, 1.2, (400, 1)) * mirrored(base)
    described = (base[rng.integers(0, 60, 400)] + rng.normal(size=(400, 64)) * 0.35).astype(np.float32)
    unit = unit_rows(described)
    near = np.maximum(unit @ unit.T, unit @ mirrored(unit).T) >= 0.9
    expected = np.zeros(400, dtype=bool)
    for row in range(400):
        expected[row] = (near[row, :row] & ~expected[:row]).any()
    assert np.array_equal(near_copies(np.arange(400), described.__getitem__, 0.9), expected)


def test_describe__an_image_of_one_color_is_no_copy_of_another(photos):
    flat = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 90, 255)])
    assert not near_copies(np.arange(3), lambda rows: describe(flat[rows]), 0.95).any()


def test_near_copies__keeps_the_first_of_each_and_reads_no_more_than_is_needed(monkeypatch):
    monkeypatch.setattr(module, "SMALLEST_PIECE", 50)
    base = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    twice = np.repeat(base, 2, axis=0)  # every odd row is a copy of the one before it
    read = []

    def described(rows):
        read.extend(rows.tolist())
        return twice[rows]

    rows = np.arange(len(twice))
    dropped = near_copies(rows, described, 0.99)
    assert np.array_equal(np.flatnonzero(dropped), rows[1::2]) and read == rows.tolist()
    read.clear()
    some = near_copies(rows, described, 0.99, needed=200)
    assert len(read) < 400 + 50 + 2
    assert np.array_equal(some[: len(read)], dropped[: len(read)]) and not some[len(read) :].any()
    assert len(read) - some.sum() >= 200


@pytest.mark.parametrize(("balance", "reach"), [("none", None), ("class", None), ("class", 1.5)])
def test_choose__picks_no_near_copy_of_a_better_image(rng, balance, reach):
    originals = np.arange(600) // 3
    features = np.random.default_rng(1).normal(size=(200, 64)).astype(np.float32)[originals]
    scores = ImageScores(rng.random(600, np.float32), rng.random(600, np.float32), rng.integers(0, 4, 600))
    choice = choose(
        scores,
        np.ones(600, bool),
        methods.confidence,
        count=60,
        seed=0,
        features=lambda rows: pytest.fail("these are the teacher's"),
        balance=balance,
        copies=lambda rows, needed: near_copies(rows, features.__getitem__, 0.99, needed),
        reach=reach,
    )
    picked = choice.indices
    assert len(picked) == len({*originals[picked]}) == 60
    assert choice.counts()["near_duplicate"] > 0
    best = {k: max(np.flatnonzero(originals == k), key=lambda row: scores.confidence[row]) for k in range(200)}
    assert all(best[originals[row]] == row for row in picked)
    assert (choice.reasons[picked] == SELECTED).all()


def test_choose__picks_near_copies_only_when_nothing_else_is_left():
    rows, originals = np.arange(30), np.arange(30) // 3
    scores = ImageScores(1 - rows / np.float32(30), np.zeros(30, np.float32), np.zeros(30, np.int64))

    def chosen(count):
        copies = np.flatnonzero(originals == np.roll(originals, 1))
        return choose(
            scores,
            np.ones(30, bool),
            methods.confidence,
            count=count,
            seed=0,
            features=lambda rows: pytest.fail("these are the teacher's"),
            balance="class",
            copies=lambda ranked, needed: np.isin(ranked, copies),
            reach=1.5,
        )

    assert chosen(10).indices.tolist() == rows[::3].tolist() and chosen(10).repeated == 0
    assert chosen(12).indices.tolist() == sorted([*rows[::3], 1, 2]) and chosen(12).repeated == 2
    assert chosen(30).repeated == 20
    assert len(chosen(None)) == 10
    with pytest.raises(RequestError, match="count=31 is above the 30 images that are left"):
        chosen(31)
