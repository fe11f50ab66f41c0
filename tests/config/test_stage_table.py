"""The table of stages, and what every caller relies on."""

import contextlib
from pathlib import Path

import pytest

import dfkd
from dfkd.config.option import options
from dfkd.config.stage_table import STAGES, as_parameters, stage_of
from dfkd.config.tables import from_mapping
from dfkd.system.errors import RequestError
from dfkd.system.locks import locked, once

GIVEN = {"teacher": "net@t.pt", "out": "o", "method": "dafl", "student": "net", "pool": ["p"], "samples": ["a", "b"]}


def config(name, **more):
    stage = STAGES[name]
    given = {key: value for key, value in GIVEN.items() if key in options(stage.options)}
    return from_mapping(stage.options, given | more, name)


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if stage.writes])
def test_stage__says_what_it_reads_and_what_it_locks(name, tmp_path):
    stage, asked = STAGES[name], config(name, out=str(tmp_path / "o"))
    assert stage_of(asked) is stage
    assert {"net@t.pt"} <= {*stage.reads(asked)} and str(tmp_path / "o") not in stage.reads(asked)
    assert stage.lock(asked) == tmp_path / ("o" if stage.writes == "run" else "o.partial")
    assert not stage.is_held(asked)
    with locked(stage.lock(asked), "o"):
        assert stage.is_held(asked)


def test_stage__refuses_before_anything_is_opened():
    with pytest.raises(RequestError, match="no selection method is called 'gues'"):
        STAGES["select"].check(config("select", method="gues"))
    with pytest.raises(RequestError, match="no generator is called 'daffl'"):
        STAGES["generate"].check(config("generate", method="daffl"))
    with pytest.raises(RequestError, match="both set the length"):
        STAGES["distill"].check(config("distill", epochs=1, steps=1, student="lenet5"))
    assert STAGES["inspect"].check(from_mapping(STAGES["inspect"].options, {"folder": "f"}, "x")) is None


def test_once__makes_what_is_not_done_and_asks_again_under_the_lock():
    asked, made = [], []

    def call(*answers):
        left = list(answers)
        return once(lambda: asked.append(1) or left.pop(0), contextlib.nullcontext, lambda: made.append(1) or "made")

    assert (call(True), call(False, True), call(False, False)) == (None, None, "made")
    assert (len(asked), len(made)) == (5, 1)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("--image-size 0 is not at least 1", "image_size 0 is not at least 1"),
        ("leave out --mixup, --cutmix and --crop-area", "leave out mixup, cutmix and crop_area"),
        ("give --no-flip, or --steps", "give flip=False, or steps"),
        ("a--b and --unknown stay", "a--b and --unknown stay"),
        ("x; look at them with: dfkd inspect s --out s.html", "x; look at them with: dfkd inspect s --out s.html"),
        ("give its dfkd distill command with another --name", "give its dfkd distill command with another name"),
    ],
)
def test_as_parameters__takes_declared_options_and_leaves_commands(said, expected):
    assert as_parameters(said) == expected


def test_stage__module_of_each_is_there():
    for stage in STAGES.values():
        module, _, function = stage.target.partition(":")
        text = (
            Path(dfkd.__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        )
        assert f"def {function}(" in text and stage.example.startswith(f"dfkd {stage.name} ")
