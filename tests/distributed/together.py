"""What losses and generators compute in one process, and in two that share the batch; `results` starts the two once.

    python tests/distributed/together.py OUT

It is a program of its own, because children are forked from it once all is imported. OUT gets three files of tensors:
one.pt, and rank0.pt and rank1.pt of the two processes.
"""

import inspect
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from benchmarks.reliability.networks import Plain
from benchmarks.reliability.scenarios import in_ranks
from dfkd import generators
from dfkd.config import DistillConfig, GenerateConfig
from dfkd.config.stages.shared import Input
from dfkd.distill import losses
from dfkd.distill import stage as distill_stage
from dfkd.distill.cohort import Cohort
from dfkd.distill.objective import build_objective
from dfkd.distill.prepare import prepare
from dfkd.distill.setting import Setting
from dfkd.distill.stale import StaleCopies
from dfkd.formats.kept_weights import kept_files
from dfkd.formats.shards import Shards
from dfkd.generators import stage as generate_stage
from dfkd.generators.build import build, choose
from dfkd.generators.nayer import from_teacher as nayer_teacher
from dfkd.models import cifar_resnet, soft_tree
from dfkd.models import classifier as classifier_module
from dfkd.models.classifier import Classifier, answer
from dfkd.models.fake_int8 import fake_int8
from dfkd.models.features.find_taps import find_taps, match_groups
from dfkd.models.features.spread import spread
from dfkd.models.features.taps import Tap, Tapped
from dfkd.models.load import load_model
from dfkd.models.sharded import shard_teacher
from dfkd.select.class_dropping import kept_classes
from dfkd.system import ranks
from dfkd.system.device import Place
from dfkd.system.errors import RequestError
from dfkd.system.random_state import Turn
from dfkd.system.shares import all_of, own_random, share
from dfkd.training.data_parallel import data_parallel
from dfkd.training.sampling import ShuffledOrder
from dfkd.training.sources import Batch, WithoutGenerator

PLACE = Place(torch.device("cpu"), torch.float32)
IMAGES, BATCH, CLASSES = 40, 7, 5
"""Seven images: two processes have three and four."""
OPTIONS = (
    "kd:hard=0.5", "kd:dropped=renormalize", "relation:of=logits", "rkd:of=logits", "cc:kernel=bilinear",
    "sp:normalize=frobenius", "pkt:diagonal=true", "crd:positive=memory", "bss:samples=4", "logits:norm=l1",
    "nst:kernel=gaussian", "simkd:projector=linear", "vid:last=true", "reviewkd:last=true", "at:squared=true",
    "tree",
)  # fmt: skip
LOSSES = [*(name.lower() for name in losses.__all__), *OPTIONS, "ft in preparation", "kd rkd ofd"]
GENERATORS = [name.lower() for name in generators.__all__]
UPDATES = 3


def of_loss(name):
    """Losses and gradients of two steps, and what the loss remembers after them."""
    specs = name.removesuffix(" in preparation").split()
    torch.manual_seed(1)
    teacher = cifar_resnet(8, 8, CLASSES).eval().requires_grad_(False)
    objective = build_objective(specs)
    of_tree = {path: Tap(path) for path in objective.student_modules}
    student = soft_tree(3, image_size=16, num_classes=CLASSES) if of_tree else Plain(CLASSES)
    taps = match_groups(
        *(find_taps(n, torch.zeros(1, 3, 16, 16), None, objective.taps).taps for n in (teacher, student))
    )
    tapped = Tapped(student, taps[1] | of_tree)
    theirs_of = partial(answer, Tapped(teacher, taps[0]), PLACE)
    answers = [spread(partial(answer, tapped, PLACE)), spread(theirs_of)]
    with torch.no_grad():
        probe = [run(torch.zeros(2, 3, 16, 16)) for run in answers]
        objective.setup(*probe, Setting(*answers, getattr(student, "linear", None), teacher.linear, IMAGES))
    for loss in objective.losses if name == specs[0] else ():
        loss.steps = loss.preparation  # it is over: now the student learns

    def compute(view, theirs):
        with own_random(view.device):
            ours = answer(tapped, PLACE, view)
        total, values = objective(ours, theirs, BATCH)
        return total, values

    step = data_parallel([student, objective], compute, PLACE.device)
    found = {}
    for number in range(2):
        view = torch.randn(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(number))
        rows = (torch.arange(BATCH) * 3 + number) % IMAGES
        part = share(BATCH) if ranks.count() > 1 else all_of(BATCH)
        view, rows = view[part.rows], rows[part.rows]
        theirs = theirs_of(view)
        peers = (theirs.logits.flip(1), theirs.logits / 2)
        theirs = replace(theirs, view=view, rows=rows, kept=kept_classes(theirs.logits, 0.1), peers=peers)
        total, _ = step(view, theirs)
        total.backward()
        found[f"loss {number}"] = total.detach()
        for what, module in (("student", student), ("objective", objective)):
            for path, p in module.named_parameters():
                if p.grad is not None:
                    found[f"gradient {number} of {what}.{path}"] = p.grad.clone()
                    p.grad = None
    return found | {f"kept {path}": buffer.clone() for path, buffer in objective.named_buffers()}


def of_rounding():
    """The ranges of the inputs of a student in int8, after two steps."""
    torch.manual_seed(1)
    student = fake_int8(cifar_resnet(8, 8, CLASSES).eval(), 3, 16).train()
    for number in range(2):
        view = torch.randn(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(number))
        student(view[(share(BATCH) if ranks.count() > 1 else all_of(BATCH)).rows])
    return {name: buffer.clone() for name, buffer in student.named_buffers()}


def of_copies():
    """What a student with old weights answers, after steps in which each process saw other images."""
    torch.manual_seed(1)
    student, copies = cifar_resnet(8, 4, CLASSES), StaleCopies([2], PLACE)
    for number in range(3):
        part = share(BATCH) if ranks.count() > 1 else all_of(BATCH)
        student(torch.randn(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(number))[part.rows])
    view = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    said = copies.answers([student], view, 0)[2][0]
    return {"said": said, **{f"kept {name}": value for name, value in copies.state_of(0)["stale"]["2"].items()}}


class RealImages(WithoutGenerator):
    """A source of images that are there already."""

    images = IMAGES

    def __init__(self):
        self._pixels = torch.randint(0, 256, (IMAGES, 8, 8, 1), dtype=torch.uint8)
        self._order, self._position = ShuffledOrder(IMAGES, 0), 0

    def sample(self, count, share=None):
        rows = torch.from_numpy(self._order.rows(self._position, count))
        self._position += count
        return Batch(self._pixels[rows], rows)

    def state_dict(self):
        return {"position": self._position}

    def load_state_dict(self, state):
        self._position = state["position"]


SHORT = {
    "deepinversion": ":steps=2,every=1", "adaptivedeepinversion": ":steps=2,every=1", "cmi": ":steps=2,warmup=1",
    "fastdfkd": ":steps=2,warmup=1", "nayer": ":steps=2,warmup=1,hidden=20",
}  # fmt: skip
"""Batches of two steps, so that the updates cross one's end."""


def of_generator(name):
    """The terms of some updates, and the state after them."""
    torch.manual_seed(5)
    spec = f"cifar_resnet:depth=8,width=4,num_classes={CLASSES},in_channels=1"
    teacher = load_model(spec, Input("0.5/0.5", 8))
    for module in teacher.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    student = Plain(CLASSES, in_channels=1)
    component = choose(name + SHORT.get(name, ""))
    real = RealImages() if component.target.needs_real else None
    method = build(component, teacher, PLACE, batch=BATCH, seed=0, real=real)
    judge = spread(partial(answer, Tapped(student, {}), PLACE)) if method.uses_student else None
    found = {}
    for number in range(UPDATES):
        for term, value in method.update(judge).items():
            found[f"{term} {number}"] = value
    found |= flat(method.state_dict())
    assert all(p.grad is None for p in student.parameters()), "the generator's step asks for no gradient of the student"
    return found


class Counting(nn.parallel.DistributedDataParallel):
    """Counts the numbers whose mean is taken over the ranks in a backward pass."""

    numbers = 0

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.register_comm_hook(None, self.count)

    __init__.__signature__ = inspect.signature(nn.parallel.DistributedDataParallel.__init__)

    @staticmethod
    def count(state, bucket):
        Counting.numbers += bucket.buffer().numel()
        return default_hooks.allreduce_hook(dist.group.WORLD, bucket)


def of_source(folder):
    """How many numbers go between the ranks as gradients, in a generator's step and in the student's."""
    teacher = f"cifar_resnet:depth=8,width=4,in_channels=1@{folder / 'teacher.safetensors'}"
    config = DistillConfig(
        teacher=teacher, student="cifar_resnet:depth=8,width=2", source="dfad:latent=4,width=2,every=1", loss=("kd",),
        image_size=12, normalize="0.5/0.5", batch_size=8, precision="fp32", device="cpu", init="none", out="",
    )  # fmt: skip
    nn.parallel.DistributedDataParallel = Counting
    trainer = prepare(config, config.teacher, config.student, None).trainer
    trainer.warm_up()
    trainer.begin()
    found = {}
    trainer.source.update(trainer.judge)
    trainer.source.update(trainer.judge)
    assert trainer.source.generator_steps == 2
    for what in ("generator", "student"):
        found[what] = torch.tensor(Counting.numbers)
        trainer.advance()
    parameters = sum(p.numel() for p in trainer.student.module.parameters())
    return found | {"parameters": torch.tensor(parameters)}


class SharedImages(RealImages):
    """The same for a student: a rank has the rows of its share."""

    def sample(self, count, share=None):
        batch = super().sample(count)
        return batch if share is None else Batch(batch.pixels[share.rows], batch.rows, share)


def of_cohort(folder):
    """The weights of two students that learn from each other, after two steps."""
    teacher = f"cifar_resnet:depth=8,width=4,in_channels=1@{folder / 'teacher.safetensors'}"
    config = DistillConfig(
        teacher=teacher, student="benchmarks.reliability.networks.Plain", loss=("kd", "dml"), source="dfad",
        image_size=8, normalize="0.5/0.5", batch_size=BATCH, precision="fp32", device="cpu", init="none", out="",
        steps=4, lr=0.1,
    )  # fmt: skip
    trainers, turns = [], []
    for seed in (0, 1):
        own = replace(config, student_seed=seed)
        trainers.append(prepare(own, own.teacher, own.student, None, peers=1).trainer)
        turns.append(Turn(PLACE.device))
        torch.manual_seed(7)
        trainers[-1].source = SharedImages()
    cohort = Cohort(trainers, turns)
    cohort.begin()
    for _ in range(2):
        cohort.advance()
    return {f"{n}.{k}": v for n, t in enumerate(trainers) for k, v in t.student.module.state_dict().items()}


def of_divided(folder):
    """A teacher's answers, gradients and parameters here, as a whole and, with several processes, divided."""
    model = load_model(
        f"cifar_resnet:depth=8,width=4,in_channels=1@{folder / 'teacher.safetensors'}", Input(image_size=12)
    )
    found = {}
    taps = {"inner": Tap("layer2.0.conv1"), "last": Tap("linear", "input")}
    for what in ("whole", "divided"):
        if what == "divided":
            shard_teacher(model, PLACE)
        nayer = build(choose("nayer:width=2"), model, PLACE, batch=BATCH, seed=0)
        found[f"{what} embeddings"] = nayer_teacher(nayer.task)
        classifier = Classifier(model, PLACE, taps)
        local = [p.to_local() if hasattr(p, "to_local") else p for p in model.module.parameters()]
        found[f"{what} numbers"] = torch.tensor(sum(p.numel() for p in local))
        for name in ("logits", *taps):
            view = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
            outputs = classifier.answer(view)
            value = outputs.logits if name == "logits" else outputs.features[name]
            found[f"{what} {name}"] = value.detach()
            found[f"{what} gradient of {name}"] = torch.autograd.grad(value.square().sum(), view)[0]
    if ranks.count() > 1:
        with ranks.apart(), pytest.raises(RequestError, match="rank 0 alone runs"):
            classifier.outputs(view)
    return found


def of_commands(folder):
    """Students and images of a teacher as a whole and divided, by whole commands."""
    teacher = f"cifar_resnet:depth=8,width=4,in_channels=1@{folder / 'teacher.safetensors'}"
    common = {"teacher": teacher, "image_size": 12, "normalize": "0.5/0.5", "precision": "fp32", "device": "cpu"}
    np.savez(folder / f"test{ranks.rank()}.npz", images=np.zeros((9, 12, 12, 1), np.uint8), labels=np.arange(9))
    found = {}
    classifier_module.folded = lambda network, taps, views: network  # a divided teacher is not folded either
    for divided in (False, True):
        out = str(folder / f"{ranks.count()}-{divided}")
        generate = GenerateConfig(
            **common, method="deepinversion:steps=2,every=1", count=6, batch_size=3, shard_teacher=divided,
            out=f"{out}-made",
        )  # fmt: skip
        shards = Shards(generate_stage.generate(generate, teacher, None))
        found[f"{divided} images"] = torch.from_numpy(shards.pixels(np.arange(6)))
        found[f"{divided} logits"] = torch.from_numpy(shards.column("logits"))
        distill = DistillConfig(
            **common, student="cifar_resnet:depth=8,width=2", samples=(f"{folder / str(ranks.count())}-False-made",),
            loss=("kd", "ofd", "srd"), init="none", batch_size=6, steps=2, reestimate=0, shard_teacher=divided,
            keep_weights=1, out=f"{out}-run", test=str(folder / f"test{ranks.rank()}.npz"),
        )  # fmt: skip
        run, result = distill_stage.distill(distill, teacher, distill.student, distill.test)
        student = load_file(run / "student.safetensors")
        found |= {f"{divided} student {name}": value for name, value in student.items()}
        for step, file in kept_files(run).items():
            found |= {f"{divided} kept {step} {name}": value for name, value in load_file(file).items()}
        found[f"{divided} agreement"] = torch.tensor([result[name] for name in ("agreement", "teacher_top1")])
    return found


def flat(state, name="state"):
    """The tensors of nested state, by their keys."""
    if isinstance(state, torch.Tensor):
        return {name: state.detach().clone()}
    parts = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return {key: value for part, inner in parts for key, value in flat(inner, f"{name}.{part}").items()}


def results(file):
    """Everything, in this process or as one of its ranks."""
    together = ranks.joined() if ranks.launched() else nullcontext()
    with together:
        found = {("loss", name): of_loss(name) for name in LOSSES}
        found |= {("generator", name): of_generator(name) for name in GENERATORS}
        found["cohort", "kd dml"] = of_cohort(file.parent)
        found["rounding", "int8"] = of_rounding()
        found["copies", "stale"] = of_copies()
        found["source", "dfad"] = of_source(file.parent)
        found["divided", "teacher"] = of_divided(file.parent)
        found["divided", "commands"] = of_commands(file.parent)
        torch.save(found, file.with_name(file.name.format(ranks.rank())))


def main(out):
    out.mkdir(exist_ok=True)
    torch.manual_seed(0)
    save_file(cifar_resnet(depth=8, width=4, in_channels=1).state_dict(), out / "teacher.safetensors")
    log = out / "log"
    statuses = in_ranks(lambda: results(out / "rank{}.pt"), log)
    if statuses != [0, 0]:
        sys.exit(f"the ranks ended with {statuses}: {log.read_text()} {log.with_name('log.1').read_text()}")
    torch.set_num_threads(1)
    results(out / "one.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
