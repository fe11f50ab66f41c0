"""What holds for every loss, on two networks of different families."""

import copy
import inspect
import re
import typing
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import nn

from dfkd.distill import losses
from dfkd.distill.loss import Family, Loss
from dfkd.distill.losses import bss, ddgsd
from dfkd.distill.objective import Objective, build_objective
from dfkd.distill.setting import Setting
from dfkd.models import cifar_resnet, wide_resnet
from dfkd.models.classifier import answer
from dfkd.models.features.find_taps import GROUPS, find_taps, match_groups
from dfkd.models.features.outputs import Outputs
from dfkd.models.features.taps import Tap, Tapped
from dfkd.system.device import Place

NAMES = sorted(name.lower() for name in losses.__all__)
FLOAT32_LOGITS = {"kd", "relation"}  # as `Outputs` promises them; the others take any
PLACE = Place(torch.device("cpu"), torch.float32)
IMAGES = 40


@cache
def networks(classes: int) -> tuple[nn.Module, nn.Module]:
    """A teacher and a student, to be copied: their construction has a third of a pair's time."""
    torch.manual_seed(1)
    return cifar_resnet(8, 8, classes).eval().requires_grad_(False), wide_resnet(10, 1, num_classes=classes).eval()


@cache
def taps_of(wanted: frozenset[str]) -> tuple[dict[str, Tap], dict[str, Tap]]:
    """The taps of both, which the number of classes does not change."""
    example = torch.zeros(1, 3, 16, 16)
    return match_groups(*(find_taps(network, example, None, wanted).taps for network in networks(5)))


class Pair:
    """A teacher and a student that differ in family, width and depth, and losses between them."""

    def __init__(self, *specs: str, classes: int = 5, place: Place = PLACE) -> None:
        self.place = place
        teacher, student = copy.deepcopy(networks(classes))
        torch.manual_seed(1)
        self.objective: Objective = build_objective(specs)
        taps = taps_of(self.objective.taps)
        self.teacher, self.student = Tapped(teacher, taps[0]), Tapped(student, taps[1])
        answers = [partial(answer, network, place) for network in (self.student, self.teacher)]
        setting = Setting(answers[0], answers[1], student.linear, teacher.linear, IMAGES)
        with torch.no_grad():
            probe = self.outputs(torch.zeros(2, 3, 16, 16))
            self.objective.setup(*probe, setting)
            self.objective.check(*probe)
        for loss in self.objective.losses:
            loss.steps = loss.preparation  # the preparation is over: now it teaches

    def outputs(self, view: torch.Tensor, rows: torch.Tensor | None = None) -> tuple[Outputs, Outputs]:
        """The student's and the teacher's answers to views of these stored images, by default of the first ones."""
        ours, theirs = (answer(network, self.place, view) for network in (self.student, self.teacher))
        rows = torch.arange(len(view)) % IMAGES if rows is None else rows
        peers = (ours.logits.detach().flip(1), theirs.logits / 2)
        return ours, replace(theirs, view=view, rows=rows, peers=peers)

    def value(self, view: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The objective of a batch, always with the same random numbers."""
        torch.manual_seed(3)
        return self.objective(*self.outputs(view, rows))[0]

    def check_finite(self, view: torch.Tensor, case: str) -> None:
        """The value of these views and its gradients."""
        value = self.value(view)
        value.backward()
        assert value.isfinite(), case
        for module in (self.student.module, self.objective):
            for p in module.parameters():
                assert p.grad is None or p.grad.isfinite().all(), case
                p.grad = None


@pytest.fixture
def view() -> torch.Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", NAMES)
class TestEveryLoss:
    def test_reaches_the_student_and_not_the_teacher(self, name, view):
        pair = Pair(name)
        pair.value(view).backward()
        assert any(p.grad is not None and p.grad.any() for p in pair.student.module.parameters())
        assert all(p.grad is None for p in pair.teacher.module.parameters())

    def test_does_not_depend_on_the_batchs_order(self, name, view, monkeypatch):
        # draws fall to positions in the batch: instead the class that is most probable, and one view for all
        monkeypatch.setattr(ddgsd, "draw_crops", lambda images, *_: torch.tensor([[1, 3, 1]] * images))
        monkeypatch.setattr(bss, "target_classes", lambda told, base: told.scatter(1, base[:, None], -9).argmax(dim=1))
        rows, order = torch.arange(len(view)), torch.tensor([3, 1, 5, 0, 2, 4])
        once, turned = (Pair(name).value(view[o], rows[o]).item() for o in (rows, order))
        assert turned == pytest.approx(once, rel=1e-4, abs=1e-6)

    @pytest.mark.parametrize("case", ["degenerate", "two classes", "bf16"])
    def test_is_finite_with_its_gradient(self, name, view, case):
        place = Place(torch.device("cpu"), torch.bfloat16) if case == "bf16" else PLACE
        pair = Pair(name, classes=2 if case == "two classes" else 5, place=place)
        if case != "degenerate":
            pair.check_finite(view, case)
            return
        pair.check_finite(view[:1].repeat(6, 1, 1, 1), "identical images")
        pair.check_finite(torch.zeros_like(view), "black images")
        with torch.no_grad():
            for network in (pair.teacher.module, pair.student.module):
                network.linear.weight.mul_(1000)
        assert pair.outputs(view)[0].logits.detach().abs().max() > 200
        pair.check_finite(view, "far logits")

    def test_computes_in_float32(self, name, view):
        """Outputs in bfloat16 cost what the same numbers in float32 do, and nearly what they were rounded from does."""
        values = []
        for dtypes in ([], [torch.bfloat16, torch.float32], [torch.bfloat16]):

            def cast(x, dtypes=dtypes):
                for dtype in dtypes:
                    x = x.to(dtype)
                return x

            pair = Pair(name)
            sides = []
            for side in pair.outputs(view):
                logits = cast(side.logits).float() if name in FLOAT32_LOGITS else cast(side.logits)
                sides.append(replace(side, logits=logits, features={k: cast(x) for k, x in side.features.items()}))
            torch.manual_seed(3)
            values.append(pair.objective(*sides)[1][name])
        exact, rounded, low = values
        assert low.dtype == torch.float32
        layers = any(True for _ in pair.objective.parameters())  # these compute in the features' own precision
        assert low.item() == pytest.approx(rounded.item(), rel=2e-3 if layers else 1e-5)
        assert low.item() == pytest.approx(exact.item(), rel=0.02)

    def test_is_resumed_by_its_state(self, name, view):
        """What a loss learnt or counted in two steps is all in its state: a fresh one goes on alike."""
        pair = Pair(name)
        for shift in (0.0, 1.0):
            pair.value(view + shift)
        fresh = Pair(name)
        fresh.objective.load_state_dict(pair.objective.state_dict())
        assert fresh.value(view).item() == pytest.approx(pair.value(view).item(), rel=1e-5, abs=1e-7)

    def test_says_what_it_is_and_where_it_is_from(self, name, view):
        kind = next(getattr(losses, n) for n in losses.__all__ if n.lower() == name)
        assert issubclass(kind, Loss)
        assert re.match(r"[A-Z].{,110}\.\n\n(    .+\n)+", inspect.getdoc(kind)), (
            "a sentence in one line, then the formula"
        )
        assert kind.family in typing.get_args(Family)
        assert kind.paper.title and kind.paper.url.startswith("https://") and 2000 < kind.paper.year < 2100
        assert kind.weight > 0 and {*kind().taps} <= {"first", "last", *GROUPS}
        assert kind.__module__ == f"dfkd.distill.losses.{name}"


def test_all_together(view):
    pair = Pair(*NAMES)
    total, values = pair.objective(*pair.outputs(view))
    assert list(values) == NAMES
    total.backward()
    assert total.isfinite()


def test_every_file_is_a_loss_and_every_loss_has_its_test(request):
    here = request.path.parent
    files = {file.stem for file in (here.parents[2] / "dfkd/distill/losses").glob("*.py")} - {"__init__"}
    assert files == {*NAMES}
    assert {file.stem.removeprefix("test_") for file in here.glob("test_*.py")} == {*NAMES, "every_loss"}
