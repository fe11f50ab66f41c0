"""Code of one's own that fails, wherever a command calls it: one line with its file and line, status 2."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dfkd.app import cli
from dfkd.models import health
from dfkd.system import names

CODE = """
import numpy as np
import torch
from torch import nn

from dfkd.data.images.filter import Filter
from dfkd.generators.base import Method
from dfkd.select.methods import Ranking
pass  # import


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        pass  # backward
        return 2 * gradient


class Net(nn.Module):
    def __init__(self, num_classes=5):
        super().__init__()
        pass  # init
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        pass  # forward
        if len(x) > 2:
            pass  # batch
        if self.training:
            pass  # training
        if torch.is_autocast_enabled("cpu"):
            pass  # precision
        if torch.compiler.is_exporting():
            pass  # export
        return self.fc(Twice.apply(self.body(x).flatten(1)) if self.training else self.body(x).flatten(1))

    def train(self, mode=True):
        pass  # train
        if mode:
            pass  # train on
        return super().train(mode)

    def to(self, *arguments, **named):
        pass  # to
        return super().to(*arguments, **named)

    def state_dict(self, *arguments, **named):
        pass  # state_dict
        return super().state_dict(*arguments, **named)

    def load_state_dict(self, *arguments, **named):
        pass  # load_state_dict
        return super().load_state_dict(*arguments, **named)

    def modules(self):
        pass  # modules
        return super().modules()


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        pass  # loss init

    @property
    def taps(self):
        pass  # loss taps
        return ()

    def bind(self, setting):
        pass  # loss bind

    def setup(self, student, teacher):
        pass  # loss setup

    def forward(self, student, teacher):
        pass  # loss call
        if len(student.logits) > 2:
            pass  # loss batch
        return (student.logits - teacher.logits).square().mean()

    def finish(self):
        pass  # loss finish


def method(scores, rng):
    pass  # method
    return Ranking(np.arange(len(scores.confidence)))


def filter(teacher, pixels):
    pass  # filter
    return Filter(torch.eye(3)[:, :, None, None], torch.zeros(3))


class Order:
    def rows(self, position, count):
        pass  # rows
        return np.arange(position, position + count) % 20


def order(stored, batch, seed):
    pass  # order
    return Order()


class Maker(Method):
    def __init__(self, task):
        super().__init__(task)
        pass  # maker init

    def update(self, student):
        pass  # update
        self.updates += 1
        return {"term": torch.zeros(())}

    def sample(self, count, random):
        pass  # sample
        return torch.rand(count, 3, 8, 8)

    def updates_for(self, count):
        pass  # updates_for
        return 2

    def available(self):
        pass  # available

    def images(self, start, count):
        pass  # images
        return torch.rand(count, 3, 8, 8)

    def parts(self):
        pass  # parts
        return {}
"""
EVALUATE = ("evaluate", "--model", "NET", "--data", "data.npz", "--precision", "fp32")
BF16 = (*EVALUATE[:-1], "bf16")
EXPORT = ("export", "--model", "NET", "--out", "net.pt2")
SELECT = ("select", "--teacher", "NET", "--pool", "data.npz", "--out", "s", "--method", "foreign.method")
FILTER = (*SELECT, "--filter", "foreign.filter")
FEATURES = (*SELECT, "--deduplicate", "0.9")
GENERATE = ("generate", "--teacher", "NET", "--method", "foreign.Maker", "--count", "4", "--out", "g")
SHORT = ("--steps", "2", "--batch-size", "4", "--log-every", "1", "--precision", "fp32", "--out", "r")
DISTILL = ("distill", "--teacher", "NET", "--student", "NET", "--samples", "sel", *SHORT)
LOSS = (*DISTILL, "--loss", "foreign.Loss")
ORDER = (*DISTILL, "--loss", "kd", "--batches", "foreign.order")
LEARN = ("distill", "--teacher", "NET", "--student", "NET", "--source", "foreign.Maker", "--loss", "kd", *SHORT)


class Bench:
    """A folder with the module `foreign`, weights of its network, images, and a selection of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write(CODE)
        import foreign  # type: ignore[import-not-found]

        torch.manual_seed(0)
        torch.save(foreign.Net().state_dict(), folder / "w.pt")
        pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / "data.npz", images=pixels, labels=np.arange(20) % 5)
        assert self.main(*SELECT[:-4], "--out", "sel", "--count", "12", "--filter", "none") == 0

    def write(self, code: str) -> None:
        (self.folder / "foreign.py").write_text(code)
        sys.modules.pop("foreign", None)

    def main(self, *arguments: str) -> int:
        model = "foreign.Net@w.pt"
        size = () if arguments[0] == "distill" and "sel" in arguments else ("--image-size", "8")
        return cli.main([*(model if word == "NET" else word for word in arguments), *size])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> object:
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("foreign")
    patch.chdir(folder)
    patch.syspath_prepend(folder)
    patch.setenv("DFKD_CACHE", str(folder / "cache"))
    patch.setattr(sys, "dont_write_bytecode", True)  # the module changes within a second
    yield Bench(folder)
    sys.modules.pop("foreign", None)
    patch.undo()


def line_of(point: str) -> int:
    (number,) = (i for i, line in enumerate(CODE.splitlines(), 1) if line.strip() == f"pass  # {point}")
    return number


def fails(bench: Bench, point: str, statement: str, arguments: tuple[str, ...], capsys: pytest.CaptureFixture) -> str:
    """What a command says when a statement stands at a point of the module; it must be a line, and the status 2."""
    bench.write(CODE.replace(f"pass  # {point}\n", f"{statement}\n"))
    return refused(bench, arguments, capsys)


def refused(bench: Bench, arguments: tuple[str, ...], capsys: pytest.CaptureFixture) -> str:
    """The one line that a command ends with."""
    for left in ("g.partial", "r", "s.partial", "cache"):
        shutil.rmtree(bench.folder / left, ignore_errors=True)
    capsys.readouterr()
    assert bench.main(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert line.startswith(f"dfkd {arguments[0]}: ")
    return line


POINTS = {
    "import": EVALUATE,
    "init": EVALUATE,
    "forward": EVALUATE,
    "batch": EVALUATE,
    "precision": BF16,
    "train": EVALUATE,
    "to": EVALUATE,
    "state_dict": EVALUATE,
    "load_state_dict": EVALUATE,
    "modules": EVALUATE,
    "export": EXPORT,
    "method": SELECT,
    "filter": FILTER,
    "training": (*DISTILL, "--loss", "kd"),
    "train on": (*DISTILL, "--loss", "kd"),
    "backward": (*DISTILL, "--loss", "kd"),
    "loss init": LOSS,
    "loss taps": LOSS,
    "loss bind": LOSS,
    "loss setup": LOSS,
    "loss call": LOSS,
    "loss batch": LOSS,
    "loss finish": LOSS,
    "order": ORDER,
    "rows": ORDER,
    "maker init": GENERATE,
    "update": GENERATE,
    "updates_for": GENERATE,
    "available": GENERATE,
    "images": GENERATE,
    "parts": GENERATE,
    "sample": LEARN,
}


@pytest.mark.parametrize("point", POINTS)
def test_foreign__is_told_with_its_line_wherever_it_raises(bench, capsys, point):
    """Code of one's own that fails at one of the many points at which a command enters it."""
    line = fails(bench, point, "raise KeyError('lost')", POINTS[point], capsys)
    assert f"KeyError: 'lost' (foreign.py, line {line_of(point)})" in line


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("raise SystemExit(0)", "SystemExit"),
        ("import sys; sys.exit('bye')", "SystemExit"),
        ("raise type('Stop', (BaseException,), {})('now')", "Stop: now"),
        ("raise StopIteration", "StopIteration"),
        ("raise ExceptionGroup('several', [ValueError('one')])", "ExceptionGroup: several (1 sub-exception)"),
        ("raise ValueError('a\\nb\\x1b[31mc\\u202e')", r"ValueError: a b\x1b[31mc\u202e"),
        ("raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})", "Mute"),
        ("raise type('Odd', (Exception,), {'__str__': lambda self: None})", "Odd"),
        ("assert x is None", "AssertionError"),
        ("open('/nowhere/at/all')", "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at/all'"),
        ("raise UserWarning('old')", "UserWarning: old"),
        ("raise RuntimeError('x' * 10000)", "RuntimeError: xxx"),
        ("(lambda f: f(f))(lambda f: f(f))", "RecursionError: maximum recursion depth exceeded"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("torch.ops.aten.mm(x, x)", "RuntimeError: "),
        ("x = x.size", "TypeError: "),
    ],
)
def test_foreign__is_told_in_one_line_whatever_it_raises(bench, capsys, statement, said):
    """Exceptions of every kind: those that end a program, that have no text, many lines, control characters."""
    line = fails(bench, "batch", statement, EVALUATE, capsys)
    assert said in line and "(foreign.py, line " in line and len(line) < 600


@pytest.mark.parametrize(
    ("old", "new", "arguments"),
    [
        ("def forward(self, x):", "def forward(self, x, lengths):", EVALUATE),
        ("def to(self, *arguments, **named):", "def to(self, device):", EVALUATE),
        ("def train(self, mode=True):", "def train(self):", EVALUATE),
        ("def forward(self, student, teacher):", "def forward(self, student):", LOSS),
        ("def setup(self, student, teacher):", "def setup(self):", LOSS),
        ("def method(scores, rng):", "def method(scores, *, rng, lost):", SELECT),
        ("def rows(self, position, count):", "def rows(self, position):", ORDER),
        ("def update(self, student):", "def update(self):", GENERATE),
        ("def images(self, start, count):", "def images(self):", GENERATE),
        ("import numpy as np", "import numpy as np\nx = (", EVALUATE),
        ("return (student.logits", "student.logits.exp_().square_()\n        return (student.logits.exp()", LOSS),
    ],
)
def test_foreign__is_told_where_no_line_of_it_ran(bench, capsys, old, new, arguments):
    """Code of one's own that takes other arguments than it is given, cannot be parsed, or spoils the gradient."""
    bench.write(CODE.replace(old, new, 1))
    line = refused(bench, arguments, capsys)
    assert "Error: " in line or "needs lost" in line


@pytest.mark.parametrize(
    ("old", "new", "arguments", "said"),
    [
        ('return {"term": torch.zeros(())}', "return None", GENERATE, "update() returns NoneType"),
        (
            "return np.arange(position, position + count) % 20",
            "return [0] * count",
            ORDER,
            "order of batches gives other than",
        ),
        ("return np.arange(position, position + count) % 20", "return np.full(count, 99)", ORDER, "from 0 to 11"),
        ("return Ranking(np.arange(len(scores.confidence)))", "return None", SELECT, "gives a NoneType"),
        ("return Order()", "return None", ORDER, "order of batches"),
        (
            "return torch.rand(count, 3, 8, 8)\n\n    def parts",
            "return None\n\n    def parts",
            GENERATE,
            "Maker gives NoneType",
        ),
        ("return torch.rand(count, 3, 8, 8)", "return torch.rand(count, 3, 9, 9)", LEARN, "Maker gives torch.float32["),
    ],
)
def test_foreign__is_told_what_it_returns(bench, capsys, old, new, arguments, said):
    """Code of one's own that returns something else than it is asked for."""
    bench.write(CODE.replace(old, new, 1))
    assert said in refused(bench, arguments, capsys)


def test_foreign__leaves_what_is_not_its_fault(bench, capsys, monkeypatch):
    """Interrupts, memory that runs out and defects of dfkd itself, which stay what they are."""
    for statement, kind in (
        ("raise MemoryError", MemoryError),
        ("raise torch.OutOfMemoryError", torch.OutOfMemoryError),
    ):
        bench.write(CODE.replace("pass  # batch", statement))
        with pytest.raises(kind):
            bench.main(*EVALUATE)
    bench.write(CODE.replace("pass  # batch", "raise KeyboardInterrupt"))
    assert bench.main(*EVALUATE) == 130
    bench.write(CODE)
    monkeypatch.setattr(health, "CHECKED_IMAGES", None)
    monkeypatch.setattr("dfkd.models.classifier.CHECKED_IMAGES", None)
    with pytest.raises(TypeError):
        bench.main(*EVALUATE)


def test_import__leaves_warnings_as_they_were(bench, capsys):
    """Modules that turn every warning into an error, for the whole process, when they are imported."""
    bench.write(CODE.replace("pass  # import", "import warnings; warnings.simplefilter('error')"))
    assert bench.main(*EVALUATE) == 0
    warned = names.warnings
    with warned.catch_warnings():
        warned.simplefilter("ignore")
        warned.warn("of ours", UserWarning, stacklevel=1)
