import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from dfkd.formats.run_records import RUN_FORMAT
from dfkd.system.checksums import sealed

MakeRun = Callable[..., str]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run's folder by hand; keyword arguments set its result, `content` and `config` its tables."""

    def make(
        name: str, seed: int = 0, *, content: dict[str, Any] | None = None, config: Any = None, **result: Any
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
            "model": {"architecture": "lenet5_half"},
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
