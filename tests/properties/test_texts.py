"""Texts of the command line and of TOML: what is written reads back, and garbage is refused in one line."""

import dataclasses
import tomllib
import types
import typing

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from dfkd import config
from dfkd.config import option, tables
from dfkd.config.stage_table import STAGES
from dfkd.data.images.normalize import parse_normalize
from dfkd.data.locate import locate
from dfkd.data.readers.hub import parse_hub
from dfkd.distill.objective import build_objective
from dfkd.models.features.taps import parse_taps
from dfkd.models.load import load_model
from dfkd.system import names
from dfkd.system.errors import RequestError
from dfkd.system.limits import Range
from dfkd.system.text import visible

GARBAGE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
SYNTAX = st.text("ab1.:,=@/[]{}()'\"\\ -~#*", max_size=20)
NAMES = st.from_regex(r"[a-z_][a-z0-9_.]{0,12}", fullmatch=True)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
PLAIN = st.one_of(st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
VALUES = st.one_of(PLAIN, GARBAGE.map(str.strip), st.lists(st.integers(), max_size=3), st.tuples(GARBAGE, PLAIN))


def refuse(read, text):
    """Read a text, or refuse it in one visible line."""
    try:
        read(text)
    except RequestError as error:
        assert str(error).isprintable()


@given(NAMES, st.dictionaries(KEYS, VALUES, max_size=4), st.lists(st.floats(allow_nan=False), max_size=3))
def test_a_name_reads_back_as_it_is_spelled(name, options, numbers):
    named = names.Named(name, options, tuple(numbers))
    assert repr(names.parse(str(named))) == repr(named)


@given(st.one_of(GARBAGE, SYNTAX))
def test_garbage_is_no_traceback(text):
    for read in (
        names.parse,
        parse_normalize_of_three,
        lambda t: parse_taps(t.split()),
        lambda t: parse_hub("hf:" + t),
        lambda t: build_objective([t]),
        lambda t: build_objective(["kd:" + t]),
        lambda t: names.find(t, ["dfkd.select.methods"], "selection method"),
    ):
        refuse(read, text)


@given(SYNTAX)
def test_garbage_is_no_model_and_no_data(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    for read in (load_model, lambda t: load_model(f"lenet5:{t}"), lambda t: load_model(f"lenet5@{t}"), locate):
        with pytest.raises(RequestError) as refused:
            read(text)
            raise RequestError("lenet5 alone is a model")
        assert str(refused.value).isprintable()


def parse_normalize_of_three(text):
    mean, std = parse_normalize(text, 3)
    assert len(mean) == len(std) == 3 and min(std) > 0 and max(map(abs, mean + std)) < float("inf")


@given(st.text())
def test_what_is_shown_is_one_printable_line(text):
    assert visible(text).isprintable()
    visible(text).encode()
    assert visible(text) == text or not text.isprintable()


WORD = st.from_regex(r"[a-z][a-z0-9:=,._/-]{0,15}", fullmatch=True)


def of_type(hint, declared):
    """Values of a type, within the range that the option declares."""
    if typing.get_origin(hint) is tuple:
        return st.lists(of_type(typing.get_args(hint)[0], declared), min_size=1, max_size=3).map(tuple)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return st.one_of(*(of_type(kind, declared) for kind in typing.get_args(hint) if kind is not type(None)))
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    bounds = declared.range or Range()
    if hint is int:
        most = 2**63 - 1 if bounds.most is None else bounds.most
        return st.integers(-(2**63) if bounds.least is None else bounds.least, most).filter(bounds.holds)
    if hint is float:
        least, most = (next((b for b in ends if b is not None), None) for ends in bounds_of(bounds))
        return st.floats(least, most, allow_nan=False, allow_infinity=False).filter(bounds.holds)
    return {bool: st.booleans(), str: WORD}[hint]


def bounds_of(bounds):
    return (bounds.least, bounds.above), (bounds.most, bounds.below)


def fields(kind):
    """Values for every field of a configuration, as TOML holds them."""
    declared = option.options(kind)
    return st.fixed_dictionaries(
        {},
        optional={n: of_type(hint, declared[n]) for n, hint in option.field_hints(kind).items() if n != "preset"},
    )


@pytest.mark.parametrize("kind", [config.SelectConfig, config.DistillConfig])
@given(data=st.data())
def test_a_configuration_survives_toml(kind, data):
    needed = {"teacher": "t", "pool": ("p",), "student": "s", "samples": ("s",), "out": "o"}
    values = {k: v for k, v in needed.items() if k in option.field_hints(kind)} | data.draw(fields(kind))
    first = kind(**values)
    written = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(first).items() if v is not None}
    again = tables.from_mapping(kind, tomllib.loads(tomli_w.dumps(written)), "f.toml")
    assert again == first
    assert not tables.differences(dataclasses.asdict(first), dataclasses.asdict(again))


TOML = st.recursive(
    st.one_of(PLAIN.filter(lambda v: v is not None), GARBAGE, st.datetimes(), st.floats()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=5,
)


@given(
    st.sampled_from(sorted(option.field_hints(config.SelectConfig) | option.field_hints(config.DistillConfig))), TOML
)
def test_a_preset_of_any_type_is_taken_or_refused(tmp_path, key, value):
    path = tmp_path / "p.toml"
    for table in ({key: value}, {"select": {key: value}}, {"distill": {key: value}}):
        path.write_text(tomli_w.dumps(table), encoding="utf-8")
        for stage in (STAGES["select"], STAGES["distill"]):
            refuse(lambda p, stage=stage: tables.load_preset(p, stage), str(path))
