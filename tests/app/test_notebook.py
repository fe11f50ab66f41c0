"""Calls from a notebook: code of cells, which no file has, and mistakes."""

import linecache
import sys
import traceback
import types

import numpy as np
import pytest

import dfkd
from dfkd.app.calls import opened
from dfkd.models import cifar_resnet
from dfkd.system.code import code_of
from dfkd.system.errors import RequestError

CELL = """
from dfkd.distill.loss import Loss

FACTOR = {factor}

def times(x):
    return FACTOR * x

def gap(student, teacher):
    return times((student.logits - teacher.logits).abs().mean())

class Gap(Loss):
    def forward(self, student, teacher):
        return gap(student, teacher)
"""


@pytest.fixture
def cell(monkeypatch):
    """Run the cell as ipykernel does: there is a name of a file, its lines, and no file."""

    def run(factor, name="cell_of_a_notebook"):
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        text, file = CELL.format(factor=factor), f"/nowhere/ipykernel_1/{factor}.py"
        linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
        exec(compile(text, file, "exec"), module.__dict__)
        return module

    return run


def teacher():
    return dfkd.Teacher(cifar_resnet(8, 4, 3, 1), normalize="0.5/0.5", image_size=8)


@pytest.mark.parametrize("name", ["gap", "Gap"])
def test_code_of__a_cell_follows_what_other_definitions_of_the_notebook_compute(cell, name):
    first, again, other = (code_of(getattr(cell(factor, "__main__"), name)) for factor in (2, 2, 3))
    assert first == again != other and first is not None


def test_distill__takes_a_loss_that_a_cell_defines(cell, tmp_path, monkeypatch):
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    pool = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    quiet = {"verbose": False, "precision": "fp32"}
    selection = teacher().select(pool, method="random", count=12, filter="none", **quiet)

    run = teacher().distill(cifar_resnet(8, 4, 3, 1), selection, loss=[cell(2).gap], steps=1, batch_size=4, **quiet)
    assert "cell_of_a_notebook.gap" in run.metrics


def test_distill__says_that_no_name_leads_to_a_function_within_another(tmp_path):
    def inner(student, teacher):
        return student.logits.mean()

    with pytest.raises(RequestError, match=r"^loss is .*test_notebook\..*inner, which cannot be found by this name"):
        teacher().distill(cifar_resnet(8, 4, 3, 1), tmp_path, loss=[inner], verbose=False)


def test_distill__names_the_parameters_that_a_loss_must_have(cell, tmp_path):
    module = cell(2)
    module.short = lambda s, t: s.logits.mean()
    module.short.__module__, module.short.__qualname__ = module.__name__, "short"
    with pytest.raises(RequestError, match="has parameters s, t; its parameters must be called student and teacher"):
        teacher().distill(cifar_resnet(8, 4, 3, 1), tmp_path, loss=[module.short], verbose=False)


def test_request_error__has_the_frames_of_the_call_and_none_below():
    def deep():
        raise RequestError("--image-size 0 is not above 0")

    try:
        with opened(verbose=False):
            deep()
    except RequestError as error:
        assert str(error) == "image_size 0 is not above 0"
        assert [frame.name for frame in traceback.extract_tb(error.__traceback__)] == [
            "test_request_error__has_the_frames_of_the_call_and_none_below"
        ]


def test_teacher__refuses_a_misspelt_normalization_at_once():
    with pytest.raises(RequestError, match="normalize 'imagnet' is unknown; did you mean 'imagenet'"):
        dfkd.Teacher("resnet18_small", normalize="imagnet")


def test_teacher__repr_names_the_class_and_what_is_given():
    assert repr(teacher()).endswith("CifarResNet: normalize=0.5/0.5, image_size=8>")
    assert " object " not in repr(teacher())


def test_loss__names_in_one_text_are_told_apart(tmp_path):
    for text in ("kd ofd", "kd,ofd", "kd + ofd"):
        with pytest.raises(RequestError, match="is not the name of one loss; give each as a value of its own: kd ofd"):
            teacher().distill(cifar_resnet(8, 4, 3, 1), tmp_path, loss=text, verbose=False)
