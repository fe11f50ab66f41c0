"""Train a teacher on labeled images by one command, with the networks, views, optimizer and loop of students.

    python benchmarks/quality/train_teacher.py --model resnet34_small --normalize cifar10 \\
        --data $DFKD_DATA/cifar10_train40k.npz --test $DFKD_DATA/cifar10_heldout10k.npz --out runs/teacher

With `--begin runs/teacher` a smaller network of the same family begins with the teacher's layers and learns from the
labels. This measures what the teacher's own images would give (docs/results.md).

OUT is a run. It resumes after a kill, and is a MODEL (`dfkd select --teacher runs/teacher`). Its result.json has the
accuracy of the last step, the seconds and the machine. The script is not part of the package, because dfkd begins with
a teacher: no command of dfkd learns from labels.
"""

import sys
from dataclasses import asdict, dataclass, fields
from datetime import date

import torch
import torch.nn.functional as F
from labeled import SURE

from dfkd.app import cli
from dfkd.config import DistillConfig, ModelConfig
from dfkd.config.option import option
from dfkd.config.stage_table import Stage
from dfkd.config.stages.shared import Input
from dfkd.data import open_pool
from dfkd.distill.defaults import default_reestimate
from dfkd.distill.init.inherit import inherit
from dfkd.distill.init.reconstruct import images_for, reconstruct
from dfkd.distill.lessons import Plan
from dfkd.distill.objective import build_objective
from dfkd.distill.trainer import Trainer
from dfkd.formats.kept_weights import WeightKeeper
from dfkd.formats.run_folder import Run
from dfkd.formats.run_records import Finished
from dfkd.models.classifier import Classifier
from dfkd.models.features.outputs import Outputs
from dfkd.models.features.taps import Tapped
from dfkd.models.load import load_model
from dfkd.models.state import state_to_write
from dfkd.system.console import say
from dfkd.system.device import Place, machine, resolve_place
from dfkd.system.errors import RequestError
from dfkd.system.files import output_path
from dfkd.system.memory import peak_memory_bytes
from dfkd.system.portable import portable
from dfkd.system.versions import versions
from dfkd.training.evaluate import check_labels, measure
from dfkd.training.loop import train
from dfkd.training.optim import SCHEDULE_WARMUP, default_rate, make_optimizer
from dfkd.training.sampling import ShuffledOrder
from dfkd.training.sources import Batch, WithoutGenerator

NAME = "train_teacher.py"


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(ModelConfig):
    """Train a teacher on labeled images."""

    model: str = option("NAME[:key=value,...]. The labels say how many classes it has.", "models")
    data: tuple[str, ...] = option("Labeled DATA to learn from.", "data")
    test: str = option("Labeled DATA for the accuracy of the last step.", "data")
    out: str = option("Folder of the run.", "output")
    begin: str | None = option(
        "MODEL whose layers it begins with, fitted to the data, as `dfkd distill --init teacher` does.",
        "models",
        default=None,
    )
    epochs: int = option("Passes over the data.", "training", default=30, least=1)
    steps: int | None = option("Optimizer steps, instead of --epochs.", "training", default=None, least=1)
    batch_size: int = option("Images per step.", "training", default=128, least=1)
    lr: float | None = option(
        "Peak learning rate of SGD. Default: 0.4; 0.1 with --begin and above 64 pixels; 0.02 without BatchNorm.",
        "training",
        default=None,
        least=0,
    )
    weight_decay: float = option(
        "Weight decay. Biases and normalization layers have none.", "training", default=5e-4, least=0
    )
    flip: bool = option("Random horizontal flip.", "training", default=True)
    checkpoint_every: int = option("Steps between two checkpoints.", "output", default=500, least=1)
    keep_weights: int = option("Moments at which weights are kept, as of dfkd distill.", "output", default=0, least=0)


class LabeledImages(WithoutGenerator):
    """Source of the training loop: the images of a pool in shuffled order."""

    def __init__(self, pool, seed):
        self._pool, self._order, self._position = pool, ShuffledOrder(len(pool), seed), 0

    @property
    def images(self):
        return len(self._pool)

    def sample(self, count, share=None):
        rows = self._order.rows(self._position, count)
        self._position += count
        found = self._pool.images(rows)
        if found.problems:
            raise RequestError(
                f"{self._pool.origins(rows[[*found.problems]])[0]} cannot be read: repair it or take it out"
            )
        return Batch(torch.from_numpy(found.pixels), torch.from_numpy(rows))

    def state_dict(self):
        return {"position": self._position}

    def load_state_dict(self, state):
        self._position = state["position"]


class LabelTrainer(Trainer):
    """Trainer with labels in place of a teacher: the teacher's logits are those of the label, whatever the view."""

    def __init__(self, classifier, labels, *more):
        super().__init__(classifier, *more)
        self._labels = torch.from_numpy(labels).to(self.place.device)

    def teach(self, view, batch):
        labels = self._labels[batch.rows.to(self.place.device)]
        return Outputs(SURE * F.one_hot(labels, self.teacher.model.classes).float(), view=view)


def run(config):
    """Train as `config` says, and resume an interrupted run of the same request. Returns the result."""
    place = resolve_place(config.device, config.precision)
    stated = Input(config.normalize, config.image_size)
    bare = load_model(config.model, stated)
    data, test = (
        open_pool(names, image_size=bare.image_size, channels=bare.channels) for names in (config.data, [config.test])
    )
    labels = data.labels()
    torch.manual_seed(config.seed)  # the initial weights
    model = load_model(config.model, stated, classes=int(labels.max()) + 1)
    check_labels(test, model.classes)
    begun = inherited = None
    if config.begin is not None:
        begun = load_model(config.begin, stated)
        inherited = inherit(model, begun)
        say(f"--begin: {inherited.summary}")
    plan = _plan(config, model, data)
    folder = Run(output_path(config.out), config.out, _request(config, plan, model, begun, data, place))
    if folder.result(Finished) is None:
        with folder.writing():
            trainer = _trainer(config, plan, model, data, labels, place)
            if begun is not None:
                _fit_layers(trainer, begun, inherited.channels, data)
            if config.keep_weights:
                trainer.keeper = WeightKeeper(folder.folder, plan.steps, config.keep_weights)
            train(trainer, folder)
            trainer.finish()
            folder.finish(state_to_write(model.module), _result(trainer, model, test))
    result = folder.result(Finished).table
    say(f"{config.out}: top-1 {result['top1']:.2%} on {result['images']:,} images, {result['seconds']:.0f} s")
    return result


def _plan(config, model, data):
    """Return the numbers that the loop follows. They are the defaults of `dfkd distill` unless an option is given."""
    defaults = DistillConfig(teacher="", student="", samples=(), out="")
    init = "none" if config.begin is None else "teacher"
    rate = default_rate("sgd", model.module, init, photographs=model.of_photographs)
    own = {name: getattr(config, name) for name in ("batch_size", "checkpoint_every", "flip", "seed")} | {
        "steps": config.steps or -(-config.epochs * len(data) // config.batch_size),
        "lr": rate if config.lr is None else config.lr,
        "warmup": SCHEDULE_WARMUP[defaults.schedule],
        "crop_padding": data.image_size // 8,
        "crop_area": 1.0,
        "batchnorm": "batch",
        "dropout": "on",
        "reestimate": default_reestimate(model),
    }
    return Plan(**{f.name: own.get(f.name, getattr(defaults, f.name, None)) for f in fields(Plan)})


def _request(config, plan, model, begun, data, place):
    """Return the tables of config.toml: the request, the network (so that the run is a MODEL), and the content."""
    shape = {name: getattr(model, name) for name in ("architecture", "normalize", "image_size", "classes", "channels")}
    deciding = {k: v for k, v in asdict(plan).items() if k not in ("log_every", "checkpoint_every")}
    content = {
        "network": model.fingerprint(),
        **({} if begun is None else {"begin": begun.fingerprint()}),
        "normalize": model.normalize,
        "data": data.identity,
        "options": {**deciding, "weight_decay": config.weight_decay},
        "compute": place.describe(),
        "versions": versions("torch", "torchvision"),
    }
    return {"train": portable(asdict(config)), "model": shape, "content": content}


def _trainer(config, plan, model, data, labels, place):
    """Build the trainer. KL at temperature 1 from a one-hot teacher is the cross-entropy with the label."""
    classifier = Classifier(model, place)
    module = model.module.requires_grad_(True)  # Classifier moves it to the device, channels last, and freezes it
    optimizer = make_optimizer([module], "sgd", config.weight_decay)
    source, objective = LabeledImages(data, plan.seed), build_objective(["kd:temperature=1"])
    return LabelTrainer(classifier, labels, Tapped(module, {}), source, objective, optimizer, plan)


def _fit_layers(trainer, begun, channels, data):
    """Fit the inherited layers to views of the data. A resumed run has fitted layers already."""
    images = LabeledImages(data, trainer.plan.seed + 1).sample(images_for(data.image_size))
    view = trainer.augment(images)
    reconstruct(trainer.student.module, begun.module.to(view.device), view, channels)


def _result(trainer, model, test):
    """Return the last step's accuracy in float32, with the cost and the machine."""
    place = trainer.place
    measures = measure(Classifier(model, Place(place.device, torch.float32)), test, 256)
    return {
        **{name: value for name, value in vars(measures).items() if value is not None},
        "steps": trainer.plan.steps,
        "seconds": round(trainer.seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(place.device),
        "seed": trainer.plan.seed,
        "parameters": model.parameter_count(),
        "date": str(date.today()),
        **machine(place.device),
        **place.describe(),
    }


def main(arguments):
    """Run the command. Returns the exit status, as for a command of dfkd."""
    return cli.main([NAME, *arguments], {NAME: Stage(NAME, TeacherConfig, f"{__name__}:run")})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
