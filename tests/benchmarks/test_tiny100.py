import numpy as np
import pytest

from dfkd.app.pipeline_file import read_pipeline
from dfkd.data import open_pool
from dfkd.system.errors import RequestError

EACH = 103


@pytest.fixture
def places(tmp_path):
    """A pool of tiny photos that show their number, in an order of chance, and the file of their classes."""
    data = tmp_path / "data"
    data.mkdir()
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(200), EACH)).astype(np.uint8)
    numbers = np.arange(len(classes))
    images = np.stack([numbers % 256, numbers // 256, 0 * numbers], axis=-1)[:, None, None].astype(np.uint8)
    np.savez(data / "pool_tiny_imagenet_32.npz", images=images)
    np.savez(data / "pool_tiny_imagenet_32-classes.npz", wnid_index=classes)
    return data, data / "pool_tiny_imagenet_32-classes.npz", classes


def test_every_photo_is_in_one_file_and_the_pool_has_no_labels(script, places):
    data, of_photos, classes = places
    made = script("tiny100").build(data, of_photos)
    assert made == ["tiny100_train40k.npz", "tiny100_heldout10k.npz", "tiny100_pool50k.npz"]
    found = []
    for name, count, labels in zip(made, (3 * 100, 100 * 100, EACH * 100), (True, True, False), strict=True):
        pool = open_pool([str(data / name)], image_size=1, channels=3)
        pixels = pool.images(np.arange(len(pool))).pixels.reshape(-1, 3).astype(int)
        rows = pixels[:, 0] + 256 * pixels[:, 1]
        assert len(rows) == count and (np.diff(rows) > 0).all()
        if labels:
            assert (pool.labels() == classes[rows]).all()
            assert set(np.bincount(pool.labels(), minlength=100)) == {count // 100}
        else:
            assert classes[rows].min() == 100
            with pytest.raises(RequestError, match="has no labels"):
                pool.labels()
        found.append(rows)
    assert sorted(np.concatenate(found)) == list(range(len(classes)))
    for k in (0, 99):  # the held-out photos of a class are its last
        of_class = [rows[classes[rows] == k] for rows in found[:2]]
        assert of_class[0].max() < of_class[1].min()


def test_what_is_whole_is_kept_and_what_is_not_is_made_anew_with_the_same_bytes(script, places):
    data, of_photos, _ = places
    build = script("tiny100").build
    files = {name: (data / name).read_bytes() for name in build(data, of_photos)}
    assert build(data, of_photos) == []
    damaged = data / "tiny100_heldout10k.npz"
    damaged.write_bytes(files[damaged.name][:-1])
    (data / "tiny100_pool50k.npz").unlink()
    assert build(data, of_photos) == ["tiny100_heldout10k.npz", "tiny100_pool50k.npz"]
    assert files == {name: (data / name).read_bytes() for name in files}
    with np.load(data / "pool_tiny_imagenet_32.npz") as pool:
        images = pool["images"]
    np.savez(data / "pool_tiny_imagenet_32.npz", images=255 - images)
    assert build(data, of_photos) == [*files]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c[1:], "has 20,600 photos"),
        (lambda c: c // 2, "are not 200 classes"),
        (lambda c: 0 * c, "not 200"),
    ],
)
def test_other_classes_are_refused(script, places, change, said):
    data, of_photos, classes = places
    np.savez(of_photos, wnid_index=change(classes))
    with pytest.raises(RequestError, match=said):
        script("tiny100").build(data, of_photos)


def test_the_pipeline_is_valid_and_reads_those_files(script, places, monkeypatch):
    data, of_photos, _ = places
    tiny100 = script("tiny100")
    tiny100.build(data, of_photos)
    monkeypatch.setenv("DFKD_DATA", str(data))
    pipeline = read_pipeline(tiny100.Path(tiny100.__file__).with_suffix(".toml"))
    read = {name for selection in pipeline.selections for name in selection.pool}
    heaps = {str(data / "tiny100-heaps" / name) for name in ("heap-20.npz", "heap-20-photos.npz")}
    assert read == {str(data / "tiny100_pool50k.npz"), str(data / "cifar10_train40k.npz"), *heaps}
    assert {d.test for d in pipeline.distillations} == {str(data / "tiny100_heldout10k.npz")}
    assert {(d.name.endswith("-500"), d.steps) for d in pipeline.distillations} == {(True, 500), (False, 2000)}
