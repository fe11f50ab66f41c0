"""Students of several teachers, at equal steps.

    python benchmarks/quality/teachers.py digits OUT_DIR [ROW ...]     the demo's digits, three seeds: seconds a run
    python benchmarks/quality/teachers.py cifar10 OUT_DIR [ROW ...]    needs DFKD_DATA, DFKD_TEACHERS: 10 minutes a run

`one`, `two` and `three` learn from as many teachers. On the digits each teacher was trained on a third of them. The
teachers of `halves` know six digits each, 0 to 5 and 4 to 9. They were trained on these digits only, without outputs
of other classes. On CIFAR-10 the second and third teacher are narrower than the first: ResNet-20, trained on its images
for 16,000 and 2,000 steps. The script trains them first (80 minutes on a core).

Each row selects random images of the pool. All rows get the same images, because only the seed draws them. All other
settings of the digits are those of losses.py. On CIFAR-10 they are the defaults, for 1,000 steps. OUT_DIR/report.csv is
for keep.py.
"""

import os
import sys
from pathlib import Path
from typing import get_args

import digits
import numpy as np
import tomli_w
import train_teacher
from losses import SETTINGS
from safetensors.torch import save_file

from dfkd.app import cli, demo
from dfkd.config.stages.shared import Mixing
from dfkd.system.files import replacing

THIRDS = ("third-0", "third-1", "third-2")
HALVES = {"low": range(6), "high": range(4, 10)}
FURTHER = {"labels-16000": 16_000, "labels-2000": 2_000}
"""Steps of the second and third teacher of CIFAR-10."""
NUMBERS = ("one", "two", "three")
MIXED = ("mean-probabilities", "confidence", "entropy", "learned")
ROWS = {
    **{name: (number, None) for number, name in enumerate(NUMBERS, 1)},
    **{f"three-{mixing}": (3, mixing) for mixing in MIXED},
    **{f"halves-{mixing}": (HALVES, mixing) for mixing in get_args(Mixing)},
}
"""Number of teachers, or the classes that each of two knows, and how they are mixed."""
EPOCHS = 24


def of_digits(folder):
    """Write the pool and the teachers of the digits, unless they exist. Returns those of `one`, `two` and `three`."""
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
    return [_model(folder, teacher) for teacher in THIRDS]


def of_cifar10(folder):
    """Train the second and third teacher of CIFAR-10, unless they exist. Returns all three."""
    values, data = SETTINGS["cifar10"], os.environ.get("DFKD_DATA", "data")
    for name, steps in FURTHER.items():
        network = ("--model", values["student"], "--normalize", values["normalize"], "--steps", str(steps))
        images = ("--data", f"{data}/cifar10_train40k.npz", "--test", f"{data}/cifar10_heldout10k.npz")
        if train_teacher.main([*network, *images, "--out", str(folder / name)]):
            sys.exit(2)
    return [values["teacher"], *(str(folder / name) for name in FURTHER)]


def _train(weights, images, labels, known):
    if not weights.exists():
        state = demo.train_teacher(images, labels, EPOCHS).state_dict()
        for name in ("linear.weight", "linear.bias"):
            state[name] = state[name][list(known)].clone()
        with replacing(weights) as partial:
            save_file(state, partial)


def _model(folder, name, classes=10):
    return f"{demo.TEACHER.replace('classes=10', f'classes={classes}')}@{folder / name}.safetensors"


def pipeline(setting, out, teachers, names):
    """Return the pipeline: for each row, random images and a student of its teachers."""
    values = SETTINGS[setting]
    if setting == "digits":
        values = values | {"pool": [str(out / "pool.npz")], "test": str(out / "heldout.npz"), "loss": ["kd"]}
    else:  # the other options at their defaults
        values = {k: v for k, v in values.items() if k not in ("init", "crop_area")} | {"steps": 1000}
    defaults = {k: v for k, v in values.items() if k not in ("seeds", "teacher")}
    tables = {"out": str(out), "seeds": values["seeds"], "defaults": defaults, "select": {}, "distill": {}}
    for name in names:
        of, mixing = ROWS[name]
        options = {"teacher": str(out / "halves.toml") if of is HALVES else teachers[:of]}
        options |= {"mixing": mixing} if mixing else {}
        chosen = options | ({"mixing": "mean-probabilities"} if mixing == "learned" else {})  # no samples yet
        tables["select"][f"for-{name}"] = {"method": "random", "filter": "none", **chosen}
        tables["distill"][name] = {"samples": [f"for-{name}"], **options}
    return tables


def main():
    prepared = {"digits": of_digits, "cifar10": of_cifar10}
    if len(sys.argv) < 3 or sys.argv[1] not in prepared or not {*sys.argv[3:]} <= {*ROWS}:
        sys.exit(f"{__doc__}\nROW is one of {', '.join(ROWS)}")
    setting, out = sys.argv[1], Path(sys.argv[2])
    names = sys.argv[3:] or (list(ROWS) if setting == "digits" else list(NUMBERS))
    if setting != "digits" and any(ROWS[name][0] is HALVES for name in names):
        sys.exit("the rows of halves are of digits")
    out.mkdir(parents=True, exist_ok=True)
    file = out / "teachers.toml"
    file.write_text(tomli_w.dumps(pipeline(setting, out, prepared[setting](out), names)), encoding="utf-8")
    sys.exit(cli.main(["run", str(file)]))


if __name__ == "__main__":
    main()
