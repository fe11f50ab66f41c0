from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfkd.data import open_pool
from dfkd.data.readers.hub import parse_hub
from dfkd.system.errors import RequestError


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def local(tmp_path: Path, patches: np.ndarray, encode: Callable) -> Path:
    folder = tmp_path / "digits"
    folder.mkdir()
    for split, start, stop in (("train", 0, 8), ("test", 8, 12)):
        cells = [{"bytes": encode(patches[i]), "path": None} for i in range(start, stop)]
        pq.write_table(pa.table({"image": cells, "label": list(range(start, stop))}), folder / f"{split}.parquet")
    return folder


def test_a_local_folder_is_loaded(local: Path, patches: np.ndarray, tmp_path: Path) -> None:
    pool = open_pool([f"hf:{local}"], image_size=16, channels=3)
    assert np.array_equal(pool.images(np.arange(8)).pixels, patches[:8])
    assert pool.origins(np.array([3])) == ["hf:digits:train#3"]
    assert str(tmp_path) not in str(pool.identity)
    assert pool.identity == open_pool([f"hf:{local}"], image_size=16, channels=3).identity
    test = open_pool([f"hf:{local}:test[1:3]"], image_size=16, channels=3)
    assert test.labels().tolist() == [9, 10]
    assert np.array_equal(test.images(np.array([1])).pixels, patches[10:11])
    with pytest.raises(RequestError, match='Unknown split "nosuch"'):
        open_pool([f"hf:{local}:nosuch"], image_size=16, channels=3)


def test_an_image_folder_is_loaded(folder: Path, patches: np.ndarray) -> None:
    pool = open_pool([f"hf:{folder}"], image_size=16, channels=3)
    assert np.array_equal(pool.images(np.arange(12)).pixels, patches)
    assert pool.labels().tolist() == [i // 4 for i in range(12)]


def test_the_hub_out_of_reach() -> None:
    with pytest.raises(RequestError, match=r"'hf:nobody/nothing' cannot be loaded"):
        open_pool(["hf:nobody/nothing"], image_size=16, channels=3)


def test_names(tmp_path: Path) -> None:
    assert parse_hub("hf:mnist") == ("mnist", None, None, "train", "hf:mnist:train")
    assert parse_hub("hf:a/b:test") == ("a/b", None, None, "test", "hf:a/b:test")
    assert parse_hub("hf:a/b/c:train[:10%]") == ("a/b", "c", None, "train[:10%]", "hf:a/b/c:train[:10%]")
    assert parse_hub("hf:a/b/c@refs/pr/1:test") == ("a/b", "c", "refs/pr/1", "test", "hf:a/b/c@refs/pr/1:test")
    shown = f"hf:{tmp_path.name}/c:train"
    assert parse_hub(f"hf:{tmp_path}/c") == (str(tmp_path), "c", None, "train", shown)
    for wrong in ("hf:", "hf::train", "hf:a/b:", "hf:a/b/c/d", "hf:a//c", "hf:a/b@"):
        with pytest.raises(RequestError, match="is not hf:REPO"):
            parse_hub(wrong)
    with pytest.raises(RequestError, match="there is no folder"):
        parse_hub("hf:/nowhere/at/all")
