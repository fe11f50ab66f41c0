"""Students that learn from each other and from themselves, on random images of the digits' pool: docs/teaching.md.

    python benchmarks/quality/students.py OUT_DIR [STEPS]        three seeds; default: 200 steps

OUT_DIR/report.csv has a row per run, OUT_DIR/measured.json the command and the machine. Both are kept in results/ as
students-digits. Each loss is added to `kd`, at its default weight. Of two students that learn from each other, the
first is the row. The second has other initial weights (`--student-seed`). The row `kd-twice-the-steps` costs as much as
two students. The script resumes after an interruption.
"""

import sys
from pathlib import Path

from losses import SETTINGS, measure

from dfkd.app import cli

ALONE = {
    "kd": {"loss": ["kd"]},
    "kd byot": {"loss": ["kd", "byot"]},
    "kd cskd": {"loss": ["kd", "cskd"], "batches": "classes:each=2"},
    "kd ddgsd": {"loss": ["kd", "ddgsd:flip=false"]},
}
MUTUAL = {
    "kd dml": ["kd", "dml:hard=0"],
    "kd codistillation": ["kd", "codistillation:burn_in=20"],
    "kd graft": ["kd", "--graft", "20"],
}
OTHERS = {"kd graft": " --lr 0.2"}
"""Options of the second student: two students of one rate would be equal after the first grafting."""


def mutual(out, steps, name, losses, seed):
    """Train two students that learn from each other, in one command. Returns the exit status."""
    values, own = SETTINGS["digits"], OTHERS.get(name, "")
    folder = out / "mutual" / f"{name.replace(' ', '-')}-seed{seed}"
    return cli.main(
        [
            *("distill", "--teacher", values["teacher"].format(out=out), "--student", values["student"]),
            *("--samples", str(out / "samples" / f"random-seed{seed}"), "--test", values["test"].format(out=out)),
            *("--init", "none", "--crop-area", "1", "--steps", str(steps), "--seed", str(seed), "--loss", *losses),
            *("--name", name, "--out", str(folder)),
            *("--also", f"--student-seed {100 + seed} --name '{name}, the other one' --out {folder}-other{own}"),
        ]
    )


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    out, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200
    rows = {name.replace(" ", "-"): options for name, options in ALONE.items()}
    rows["kd-twice-the-steps"] = {"loss": ["kd"], "steps": 2 * steps}
    status = measure("students", "digits", out, rows, steps=steps)
    for name, losses in MUTUAL.items():
        for seed in SETTINGS["digits"]["seeds"]:
            status = status or mutual(out, steps, name, losses, seed)
    runs = [*sorted((out / "runs").iterdir()), *sorted((out / "mutual").iterdir())]
    sys.exit(status or cli.main(["compare", *map(str, runs), "--out", str(out / "report.html")]))


if __name__ == "__main__":
    main()
