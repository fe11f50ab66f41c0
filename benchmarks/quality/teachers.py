"""Students of several teachers, at equal steps.

    python benchmarks/quality/teachers.py OUT_DIR [ROW ...]     the demo's digits, three seeds: seconds a run

`one`, `two` and `three` learn from as many teachers, each trained on a third of the digits. The teachers of `halves`
know six digits each, 0 to 5 and 4 to 9. They were trained on these digits only, without the outputs of other classes.
Each row selects random images of the pool. All rows get the same 5,000 images, because only the seed draws them. All
other settings are those of losses.py. OUT_DIR/report.csv is for keep.py.
"""

import sys
from pathlib import Path
from typing import get_args

import digits
import numpy as np
import tomli_w
from losses import SETTINGS
from safetensors.torch import save_file

from dfkd.app import cli, demo
from dfkd.config.stages.shared import Mixing
from dfkd.system.files import replacing

THIRDS = ("third-0", "third-1", "third-2")
HALVES = {"low": range(6), "high": range(4, 10)}
ROWS = {
    "one": (THIRDS[:1], None),
    "two": (THIRDS[:2], None),
    "three": (THIRDS, None),
    **{f"three-{mixing}": (THIRDS, mixing) for mixing in ("mean-probabilities", "confidence", "entropy", "learned")},
    **{f"halves-{mixing}": (HALVES, mixing) for mixing in get_args(Mixing)},
}
EPOCHS = 24


def prepare(folder):
    """Write the pool and the teachers, unless they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    digits.prepare(folder)
    images, labels = demo.digits()
    learnt = np.flatnonzero(np.random.default_rng(0).random(len(images)) >= 0.4)  # as demo.prepare_teacher
    for number, name in enumerate(THIRDS):
        _train(folder / f"{name}.safetensors", images[learnt[number::3]], labels[learnt[number::3]], range(10))
    for name, known in HALVES.items():
        rows = learnt[np.isin(labels[learnt], known)]
        _train(folder / f"{name}.safetensors", images[rows], labels[rows], known)
    tables = [
        {"model": _model(folder, name, len(known)), "normalize": demo.NORMALIZE, "classes": [str(k) for k in known]}
        for name, known in HALVES.items()
    ]
    (folder / "halves.toml").write_text(tomli_w.dumps({"teacher": tables}), encoding="utf-8")


def _train(weights, images, labels, known):
    if not weights.exists():
        state = demo.train_teacher(images, labels, EPOCHS).state_dict()
        for name in ("linear.weight", "linear.bias"):
            state[name] = state[name][list(known)].clone()
        with replacing(weights) as partial:
            save_file(state, partial)


def _model(folder, name, classes=10):
    return f"{demo.TEACHER.replace('classes=10', f'classes={classes}')}@{folder / name}.safetensors"


def main():
    if len(sys.argv) < 2 or not {*sys.argv[2:]} <= {*ROWS}:
        sys.exit(f"{__doc__}\nROW is one of {', '.join(ROWS)}")
    out, names = Path(sys.argv[1]), sys.argv[2:] or list(ROWS)
    prepare(out)
    values = SETTINGS["digits"] | {"pool": [str(out / "pool.npz")], "test": str(out / "heldout.npz"), "loss": ["kd"]}
    tables = {"out": str(out), "seeds": values.pop("seeds"), "defaults": values, "select": {}, "distill": {}}
    del values["teacher"]
    for name in names:
        teachers, mixing = ROWS[name]
        given = str(out / "halves.toml") if teachers is HALVES else [_model(out, teacher) for teacher in teachers]
        options = {"teacher": given} | ({"mixing": mixing} if mixing else {})
        chosen = options | ({"mixing": "mean-probabilities"} if mixing == "learned" else {})  # no samples yet
        tables["select"][f"for-{name}"] = {"method": "random", "filter": "none", **chosen}
        tables["distill"][name] = {"samples": [f"for-{name}"], **options}
    file = out / "teachers.toml"
    file.write_text(tomli_w.dumps(tables), encoding="utf-8")
    sys.exit(cli.main(["run", str(file)]))


if __name__ == "__main__":
    main()
