"""Students of several training options, at equal steps, on random images of the pool, with KL alone unless named.

    python benchmarks/quality/options.py digits OUT_DIR [ROW ...]     the demo's digits, three seeds: a minute a run
    python benchmarks/quality/options.py cifar10 OUT_DIR [ROW ...]    needs DFKD_DATA and DFKD_TEACHERS: minutes a run

Settings and output files are those of losses.py: results/options-digits.csv and .json are copies of its report.csv and
measured.json.
"""

import sys
from pathlib import Path

from losses import SETTINGS, measure

GENERATOR = "dafl:width=16"
ROWS = {
    "plain": {},
    "mixup": {"mixup": 1.0},
    "cutmix": {"cutmix": 1.0},
    "mixup-cutmix": {"mixup": 1.0, "cutmix": 1.0},
    "ema": {"ema": 0.99},
    "reestimate": {"reestimate": 50},
    "ema-reestimate": {"ema": 0.99, "reestimate": 50},
    "hardest": {"batches": "hardest:share=0.5"},
    "area": {"crop_area": 0.4},
    "area-0.2": {"crop_area": 0.2},
    "area-0.7": {"crop_area": 0.7},
    "cutmix-reestimate": {"cutmix": 1.0, "reestimate": 50},
    "init": {"init": "teacher", "lr": 0.4},
    "init-slow": {"init": "teacher", "lr": 0.1},
    "ofd": {"loss": ["kd", "ofd"]},
    "ofd-area": {"loss": ["kd", "ofd"], "crop_area": 0.4},
    "ofd-init": {"loss": ["kd", "ofd"], "init": "teacher", "lr": 0.4},
    "ofd-init-slow": {"loss": ["kd", "ofd"], "init": "teacher", "lr": 0.1},
    "ofd-init-slow-area": {"loss": ["kd", "ofd"], "init": "teacher", "lr": 0.1, "crop_area": 0.4},
    "plain-uncropped": {"crop_padding": 0},
    "ofd-init-slow-uncropped": {"loss": ["kd", "ofd"], "init": "teacher", "lr": 0.1, "crop_padding": 0},
    "dafl": {"samples": [], "source": GENERATOR},
    "dafl-area": {"samples": [], "source": GENERATOR, "crop_area": 0.4},
    "dafl-init": {"samples": [], "source": GENERATOR, "init": "teacher", "lr": 0.4},
    "dafl-init-slow": {"samples": [], "source": GENERATOR, "init": "teacher", "lr": 0.1},
}


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in SETTINGS or not {*sys.argv[3:]} <= {*ROWS}:
        sys.exit(f"{__doc__}\nROW is one of {', '.join(ROWS)}")
    setting, out, *names = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    sys.exit(measure("options", setting, out, {name: {"loss": ["kd"], **ROWS[name]} for name in names or ROWS}))


if __name__ == "__main__":
    main()
