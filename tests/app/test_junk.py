from functools import partial

import numpy as np
import pytest

from dfkd.app import heaps, junk

DRAWN = (junk.text, junk.glyph, junk.screen, junk.gradient, junk.noise)
MAKERS = (*DRAWN, partial(junk.texture, np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)))


def photos(count, side=16):
    """Smooth images in color, each another one."""
    rng = np.random.default_rng(count)
    small = rng.integers(40, 216, (count, 4, 4, 3)).astype(np.uint8)
    return small.repeat(side // 4, axis=1).repeat(side // 4, axis=2)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("side", [16, 32])
def test_maker__draws_different_images_and_the_same_with_the_same_seed(make, side):
    images = make(np.random.default_rng(1), 60, side)
    assert (images.shape, images.dtype) == ((60, side, side, 3), np.uint8)
    assert np.array_equal(images, make(np.random.default_rng(1), 60, side))
    assert len(np.unique(images.reshape(60, -1), axis=0)) == 60
    varied = images.reshape(60, -1, 3).std(axis=1).max(axis=1) > 1
    assert varied.mean() > 0.7  # a gradient may be one color, a cutting of a page blank
    assert make(np.random.default_rng(1), 0, side).shape == (0, side, side, 3)


def test_texture__has_only_what_its_photo_has():
    gray = np.array([50, 100, 200], np.uint8)[:, None, None, None] + np.zeros((3, 32, 32, 3), np.uint8)
    gray += np.random.default_rng(0).integers(0, 10, gray.shape, np.uint8)
    images = junk.texture(gray, np.random.default_rng(0), 50, 16)
    low, high = images.min(axis=(1, 2, 3)), images.max(axis=(1, 2, 3))
    assert {*(low // 10 * 10).tolist()} == {50, 100, 200} and (high - low < 10).all()


@pytest.mark.parametrize("copy", heaps.COPIED.values())
def test_copy__is_near_its_photo_and_not_the_same(copy):
    originals = photos(30, side=32)
    near = copy(originals, np.random.default_rng(0)).astype(float)
    assert (near != originals).any(axis=(1, 2, 3)).all()
    as_it_is, mirrored = originals.astype(float).reshape(30, -1), originals[:, :, ::-1].astype(float).reshape(30, -1)
    alike = np.abs([np.corrcoef(near.reshape(30, -1), other)[:30, 30:] for other in (as_it_is, mirrored)]).max(axis=0)
    assert (alike.argmax(axis=1) == np.arange(30)).all()


def test_heap__has_every_photo_once_and_junk_of_every_kind():
    real = photos(80)
    heap = heaps.heap(real, photos(5), 400, seed=0)
    found = heap.images[heap.kind == 0]
    assert np.array_equal(found, real[heap.original[heap.kind == 0]])
    assert sorted(heap.original[heap.kind == 0]) == list(range(80))
    weights = np.array([*heaps.JUNK.values()]) / sum(heaps.JUNK.values())
    assert np.abs(np.bincount(heap.kind)[1:] - 320 * weights).max() <= 1
    assert np.flatnonzero(heap.kind == 0).max() > 300  # in random order
    of_a_kind = np.array([kind in heaps.COPIED for kind in heaps.KINDS])
    assert (heap.kind[heap.original[of_a_kind[heap.kind]]] == 0).all()
    assert (heap.original[~of_a_kind[heap.kind] & (heap.kind > 0)] == -1).all()
    assert len(np.unique(heap.original[of_a_kind[heap.kind]])) == 80 // heaps.COPIES_OF
    again = heaps.heap(real, photos(5), 400, seed=0)
    assert np.array_equal(heap.images, again.images) and np.array_equal(heap.original, again.original)
    assert not np.array_equal(heap.images, heaps.heap(real, photos(5), 400, seed=1).images)


def test_heap__of_photos_alone_and_in_several_blocks(monkeypatch):
    assert (heaps.heap(photos(8), photos(1), 8, seed=0).kind == 0).all()
    monkeypatch.setattr(heaps, "AT_ONCE", 7)
    heap = heaps.heap(photos(8), photos(1), 200, seed=0)
    assert heap.images.std(axis=(1, 2, 3)).min() >= 0 and (np.bincount(heap.kind) > 0).all()
    assert (heap.images.max(axis=(1, 2, 3)) > 0).mean() > 0.95  # no row was left out
