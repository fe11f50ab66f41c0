import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from PIL import Image

from dfkd.formats.manifest import write_manifest
from dfkd.formats.run_records import RUN_FORMAT
from dfkd.formats.shards import Rows, write_shards
from dfkd.system.checksums import sealed

MakeRun = Callable[..., str]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run's folder by hand; keyword arguments set its result, `content` and `config` its tables."""

    def make(
        name: str,
        seed: int = 0,
        *,
        content: dict[str, Any] | None = None,
        config: Any = None,
        class_names: Sequence[str] = (),
        **result: Any,
    ) -> str:
        folder = tmp_path / "runs" / f"{len(list(tmp_path.glob('runs/*')))}"
        folder.mkdir(parents=True)
        tables = {
            "distill": {
                "teacher": "lenet5@t.pt",
                "student": "lenet5_half",
                "samples": [f"samples/{seed}"],
                "out": str(folder),
                "steps": 100,
                "seed": seed,
                "loss": ["kd", "relation:1"],
                **(config or {}),
            },
            "model": {"architecture": "lenet5_half", "class_names": [*class_names]},
            "content": {
                "teacher": {"architecture": "lenet5", "weights": "f" * 64},
                "student": {"architecture": "lenet5_half", "weights": f"{seed}" * 64},
                "normalize": "none",
                "selections": [f"fingerprint{seed}"],
                "selected": ["method=random"],
                "options": {"student": "lenet5_half", "seed": seed, "steps": 100, "peak_rate": 0.4},
                "compute": {"device": "cpu", "precision": "float32"},
                "versions": {"dfkd": "0.1.0", "torch": "2.15.0"},
                **(content or {}),
            },
        }
        (folder / "config.toml").write_text(tomli_w.dumps(sealed({"format": RUN_FORMAT, **tables})), encoding="utf-8")
        found = {
            "top1": 0.8,
            "top5": 0.99,
            "agreement": 0.85,
            "teacher_top1": 0.95,
            "test_images": 1000,
            "per_class": [0.5, None],
            "steps": 100,
            "images_seen": 12800,
            "teacher_forwards": 12800,
            "generator_steps": 0,
            "begins": "random",
            "files": {},
            "seconds": 4.0,
            "source": "selection",
            "seed": seed,
            "student_parameters": 1234,
            "name": name,
        } | result
        (folder / "result.json").write_text(json.dumps(sealed(found)), encoding="utf-8")
        rows = [{"step": step, "loss": 1.0 / step + seed, "agreement": 0.1 * seed} for step in (50, 100)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(folder)

    return make


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _make_selection(
    folder: Path,
    predictions: list[int],
    classes: int,
    *,
    channels: int = 3,
    side: int = 4,
    encoded: bool = False,
    names: list[str] | None = None,
) -> Path:
    """A selection whose images are flat: their value is their row. Confidence is 0.5 + row / 50."""
    n = len(predictions)
    pixels = np.zeros((n, side, side, channels), np.uint8) + np.arange(n, dtype=np.uint8)[:, None, None, None]
    kept = np.zeros((n, classes), bool)
    kept[np.arange(n), predictions] = True
    kept[0] = True
    rows = Rows(
        image=[png(image) for image in pixels] if encoded else pixels,
        source=[f"pool/<{i}>.png" for i in range(n)],
        prediction=np.array(predictions),
        confidence=(0.5 + np.arange(n) / 50).clip(0, 1).astype(np.float32),
        entropy=(0.4 - np.arange(n) / 100).clip(0, 1).astype(np.float32),
        logits=np.zeros((n, classes), np.float32),
        kept_classes=kept,
    )
    manifest: dict[str, Any] = {
        "fingerprint": "0" * 16,
        "teacher": "lenet5@<t>.pt",
        "image": {"encoded": encoded, "size": side, "channels": channels},
        "classes": classes,
        **({"class_names": names} if names else {}),
        "threshold": 0.5,
        "admitted": n + 1,
        "source": "selection",
        "count": n,
        "per_class": np.bincount(predictions, minlength=classes).tolist(),
        "reasons": {"selected": n, "unreadable": 1, "not_drawn": 1},
        "unreadable": [{"source": "x", "why": "y"}],
        "content": {
            "teacher": {"architecture": "lenet5", "weights": "0"},
            "preprocess": {"normalize": "none"},
            "options": {"method": "threshold:gamma=0.7", "count": n, "deduplicate": None},
            "seed": 5,
        },
    }
    files = write_shards(folder, [rows], "0" * 16)
    write_manifest(folder, manifest | {"files": files})
    reasons = pa.array(["selected"] * n + ["unreadable", "not_drawn"]).dictionary_encode()
    scores = {
        "source": [*rows.source, "x", "y"],
        "prediction": np.array([*predictions, 0, classes - 1], np.int32),
        "confidence": np.concatenate([rows.confidence, np.float32([1.0, 0.1])]),
        "entropy": np.concatenate([rows.entropy, np.float32([0.0, 0.9])]),
        "reason": reasons,
    }
    pq.write_table(pa.table(scores), folder / "scores.parquet")
    return folder


@pytest.fixture
def make_selection() -> Callable[..., Path]:
    return _make_selection
