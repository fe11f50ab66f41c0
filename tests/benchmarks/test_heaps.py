import numpy as np
import pytest
from safetensors.torch import save_file

from dfkd.config.stages.shared import Input
from dfkd.data import open_pool
from dfkd.models.load import load_model
from dfkd.system.errors import RequestError


@pytest.fixture
def pools(script, tmp_path, monkeypatch):
    """All four pools of 200 images, made of 500 photos, with a teacher that is a random network."""
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    np.savez(data / "pool_tiny_imagenet_32.npz", images=rng.integers(0, 256, (500, 32, 32, 3), np.uint8))
    heaps = script("heaps")
    network = load_model("cifar_resnet:depth=8,width=4", Input("cifar10")).module
    save_file(network.state_dict(), tmp_path / "teacher.safetensors")
    monkeypatch.setattr(heaps, "teacher", lambda: f"cifar_resnet:depth=8,width=4@{tmp_path / 'teacher.safetensors'}")
    monkeypatch.setattr(heaps, "SINGLES", 20)
    monkeypatch.setenv("DFKD_DATA", str(data))

    def make(out, *names):
        monkeypatch.setattr("sys.argv", ["heaps.py", *names, "--images", "200", "--out", str(out)])
        heaps.main()
        return {file.name: file.read_bytes() for file in out.iterdir()}

    return heaps, make, data


def test_pools_are_what_their_kinds_say_and_the_same_each_time(pools, tmp_path):
    heaps, make, data = pools
    files = make(tmp_path / "a", *heaps.MAKERS)
    assert files == make(tmp_path / "b", *heaps.MAKERS) == make(tmp_path / "a", "heap-20")
    photos = np.load(data / "pool_tiny_imagenet_32.npz")["images"]
    for name in heaps.MAKERS:
        pool = open_pool([str(tmp_path / "a" / f"{name}.npz")], image_size=None, channels=3)
        images, kinds = pool.images(np.arange(len(pool))).pixels, np.load(tmp_path / "a" / f"{name}-kinds.npz")
        assert len(kinds["kind"]) == len(kinds["original"]) == len(pool) and images.shape[1:] == (32, 32, 3)
        rows = kinds["original"][kinds["kind"] == 0]
        assert len({*rows}) == len(rows) and np.array_equal(images[kinds["kind"] == 0], photos[rows])
        if name in heaps.SHARES:
            assert len(rows) == round(heaps.SHARES[name] * 200)
            alone = np.load(tmp_path / "a" / f"{name}-photos.npz")["images"]
            assert {image.tobytes() for image in alone} == {image.tobytes() for image in photos[rows]}
    assert np.load(tmp_path / "a" / "adversarial-kinds.npz")["names"].tolist() == ["photo", "crafted"]


def test_photos_of_another_file(pools, tmp_path, rng):
    _, make, _ = pools
    photos = rng.integers(0, 256, (300, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "others.npz", images=photos)
    make(tmp_path / "a", "heap-20", "--photos", str(tmp_path / "others.npz"))
    alone = np.load(tmp_path / "a" / "heap-20-photos.npz")["images"]
    assert len(alone) == 40 and {image.tobytes() for image in alone} <= {image.tobytes() for image in photos}


def test_crafted_images_deceive_the_model(pools):
    heaps, _, _ = pools
    model = load_model(heaps.teacher(), Input("cifar10"))
    made = heaps.craft_all(model, 40, np.random.default_rng(0))
    before = np.concatenate([make(np.random.default_rng(0), 8, 32) for make in heaps.STARTS])
    sure = [model.module(model.preprocess(heaps.torch.from_numpy(x))).softmax(1) for x in (before, made)]
    wanted = [p[np.arange(40), np.arange(40) % 10].mean().item() for p in sure]
    assert wanted[1] > 2 * wanted[0]


def test_tail__is_a_power_law_of_the_frequent_classes(script):
    predictions = np.repeat([3, 0, 7], [400, 300, 40])
    rows = script("heaps").tail(predictions, seed=0)
    assert np.bincount(predictions[rows], minlength=8).tolist() == [100, 0, 0, 400, 0, 0, 0, 40]
    assert len({*rows.tolist()}) == len(rows) and (np.diff(rows) < 0).any()


def test_too_few_photos_are_refused(script):
    with pytest.raises(RequestError, match="600 photos are needed and the pool has 500"):
        script("heaps").drawn(range(500), 600, seed=0)
