"""Students of each loss, at equal steps, on random images of the pool: the accuracies in docs/losses.md.

    python benchmarks/quality/losses.py digits OUT_DIR [NAME ...]     the demo's digits, three seeds: seconds a run
    python benchmarks/quality/losses.py cifar10 OUT_DIR [NAME ...]    needs DFKD_DATA and DFKD_TEACHERS: minutes a run

The script writes a pipeline and runs it by `dfkd run`, so it resumes after an interruption. OUT_DIR/report.csv has a
row per run, OUT_DIR/measured.json the command and the machine. docs/losses.md is made from copies of both,
results/losses-SETTING.csv and .json. A loss on outputs is used alone. Every other loss is added to `kd`, at its
default weight. Images are drawn at random and all other options are off, so rows differ only in the loss.
"""

import sys
from datetime import date
from pathlib import Path

import digits
import tomli_w

from dfkd.app import cli, demo
from dfkd.distill import losses
from dfkd.system.device import machine, resolve_place
from dfkd.system.files import write_json

ALONE = {"kd", "alpha", "dist", "dkd", "logits", "standardized"}
SPELLED = {"ft": "ft:paraphraser=100"}  # the default of 500 steps would exceed a short run
SETTINGS = {
    "digits": {
        "seeds": [0, 1, 2],
        "teacher": f"{demo.TEACHER}@{{out}}/teacher.safetensors",
        "normalize": demo.NORMALIZE,
        "image_size": demo.SIDE,
        "pool": ["{out}/pool.npz"],
        "count": digits.PATCHES // 4,
        "student": demo.STUDENT,
        "steps": 400,
        "init": "none",
        "crop_area": 1.0,
        "test": "{out}/heldout.npz",
    },
    "cifar10": {
        "seeds": [0],
        "teacher": "cifar_resnet:depth=20,width=32@$DFKD_TEACHERS/cifar10_resnet20_w32_train40k.pt",
        "normalize": "cifar10",
        "pool": ["$DFKD_DATA/pool_tiny_imagenet_32.npz"],
        "count": 50_000,
        "student": "cifar_resnet:depth=20",
        "steps": 1000,
        "init": "none",
        "crop_area": 1.0,
        "test": "$DFKD_DATA/cifar10_heldout10k.npz",
    },
    "tiny100": {
        "seeds": [0],
        "teacher": "runs/tiny100-teacher",
        "pool": ["$DFKD_DATA/tiny100_pool50k.npz"],
        "count": 25_000,
        "student": "cifar_resnet:depth=20",
        "steps": 2000,
        "init": "none",
        "crop_area": 1.0,
        "test": "$DFKD_DATA/tiny100_heldout10k.npz",
    },
}


def measure(script, setting, out, rows, **changed):
    """Run the pipeline of one setting: a random selection, and a run for every row.

    Returns the exit status of the command.

    `changed` are values that replace those of the setting.
    """
    values = SETTINGS[setting] | changed
    out.mkdir(parents=True, exist_ok=True)
    if setting == "digits":
        digits.prepare(out)
    tables = {
        "out": str(out),
        "seeds": values["seeds"],
        "defaults": {k: _placed(v, out) for k, v in values.items() if k != "seeds"},
        "select": {"random": {"method": "random", "filter": "none"}},
        "distill": {name: {"samples": ["random"], **options} for name, options in rows.items()},
    }
    file = out / f"{script}.toml"
    file.write_text(tomli_w.dumps(tables), encoding="utf-8")
    status = cli.main(["run", str(file)])
    if status == 0:
        place = resolve_place("auto", "auto")
        measured = {"command": f"benchmarks/quality/{script}.py {setting}", "date": str(date.today())}
        write_json(out / "measured.json", measured | machine(place.device) | place.describe())
    return status


def _summed(name):
    return [name] if name in ALONE else ["kd", SPELLED.get(name, name)]


def _placed(value, out):
    if isinstance(value, list):
        return [_placed(item, out) for item in value]
    return value.replace("{out}", str(out)) if isinstance(value, str) else value


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in SETTINGS:
        sys.exit(__doc__)
    setting, out, *names = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    of_one = (name.lower() for name in losses.__all__ if not getattr(losses, name).reads_peers)
    names = names or sorted(of_one, key=lambda name: (name not in ALONE, name))
    sys.exit(measure("losses", setting, out, {name: {"loss": _summed(name)} for name in names}))


if __name__ == "__main__":
    main()
