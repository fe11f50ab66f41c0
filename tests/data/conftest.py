import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    return load_sample_image("china.jpg")  # uint8 [427, 640, 3]


@pytest.fixture
def patches(photo: np.ndarray) -> np.ndarray:
    """Twelve 16x16 patches of a photograph, all different."""
    return np.stack([photo[20 * i : 20 * i + 16, 30 * i : 30 * i + 16] for i in range(12)])


@pytest.fixture
def encode() -> Callable[..., bytes]:
    def to_bytes(pixels: np.ndarray, format: str = "PNG", **options: object) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format, **options)
        return file.getvalue()

    return to_bytes


@pytest.fixture
def folder(tmp_path: Path, patches: np.ndarray, encode: Callable[..., bytes]) -> Path:
    """The patches as PNG files in three class folders, four in each."""
    top = tmp_path / "photos"
    for i, patch in enumerate(patches):
        path = top / "abc"[i // 4] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(patch))
    return top
