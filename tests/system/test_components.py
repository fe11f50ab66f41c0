"""The record of what a NAME:key=value names, whatever the kind."""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from dfkd.system import components
from dfkd.system.components import Component, Kind
from dfkd.system.errors import RequestError
from dfkd.system.limits import SHARE, Range
from dfkd.system.names import parse

THING = Kind("thing", (__name__,), given=("given",))


def thing(
    given,
    depth: int,
    width: float = 2,
    *,
    kind: Literal["a", "b"] = "a",
    tag: str | None = None,
    many: tuple[int, ...] = (),
    share: Annotated[float, SHARE] = 0.5,
):
    return given, depth, width, kind, tag, many, share


def named(text, target=thing, kind=THING):
    return Component(kind, target, parse(text), kind.given)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a module of one's own."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code):
        (tmp_path / "own_things.py").write_text(code)
        sys.modules.pop("own_things", None)
        return tmp_path / "own_things.py"

    return write


def test_build__converts_to_the_annotated_types():
    built = named("thing:depth=3,width=2,kind=b,tag=5,many=[1,2],share=1").build(given="g")
    assert built == ("g", 3, 2.0, "b", "5", (1, 2), 1.0)
    assert isinstance(built[2], float) and isinstance(built[6], float)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("thing:dept=3", "thing 'thing' has no parameter 'dept'; did you mean 'depth'"),
        ("thing:given=3", "has no parameter 'given'"),
        ("thing:width=3", "needs depth: thing:depth=..."),
        ("thing:depth=2.5", "thing:depth=2.5 is not a whole number"),
        ("thing:depth=true", "is not a whole number"),
        ("thing:depth=1,kind=c", "not one of a, b"),
        ("thing:depth=1,share=0", "^thing:share=0 is not above 0 and at most 1$"),
        ("thing:3", "3 is for no parameter; write thing:key=3 with one of depth, width"),
    ],
)
def test_checked__names_what_is_wrong(text, said):
    with pytest.raises(RequestError, match=said):
        named(text).checked()


def test_checked__spells_the_defaults_in_their_types():
    def plain(given, width: float = 2, *, kind: Literal["a", "b"] = "a"):
        return given, width, kind

    def text(spelled):
        return named(spelled, plain).checked().text

    assert text("Plain") == text("plain:width=2") == text("plain:kind=a,width=2.0") == "plain:width=2.0,kind=a"
    assert text("my.own:width=3") == "my.own:width=3.0", "its code says the rest"


def test_checked__keeps_the_numbers_that_the_kind_takes():
    loss = Kind("loss", (), numbers=1)
    component = named("thing:2,depth=1", kind=loss, target=lambda depth=1: depth)
    assert component.checked().named.numbers == (2.0,)
    with pytest.raises(RequestError, match="3 is for no parameter"):
        named("thing:2,3", kind=loss, target=lambda depth=1: depth).checked()


def test_preset__gives_way_to_the_text():
    component = named("thing:depth=1")
    assert component.preset(depth=2, width=5.0).text == "thing:depth=1,width=5.0"
    assert component.set(depth=2).text == "thing:depth=2"


def test_identity__has_the_code_of_ones_own_and_the_files_that_options_name(own, tmp_path):
    file = own("def make(path: str = ''):\n    return path\n")
    kind, reading = Kind("thing", ()), Kind("thing", (), reads_files=True)
    (tmp_path / "data.txt").write_text("one")
    text = f"own_things.make:path={tmp_path / 'data.txt'}"
    first = reading.choose(text)
    assert first.is_own and first.code in first.identity and first.identity.startswith(first.text + " (code ")
    before = first.identity
    assert "(file " in before and "(file " not in kind.choose(text).identity
    (tmp_path / "data.txt").write_text("another")
    assert reading.choose(text).identity != before
    code = first.code
    file.write_text(file.read_text().replace("return path", "return path + path"))
    assert kind.choose(text).code != code
    assert Kind("selection method", ("dfkd.select.methods",), ("scores", "rng")).choose("random").identity == "random"


def test_build__says_whose_fault_it_is(own):
    own("def refuses(x: int = 1):\n    raise ValueError('too small')\n\ndef breaks():\n    return [][1]\n")
    kind = Kind("thing", ())
    with pytest.raises(
        RequestError, match=r"^thing 'own_things.refuses' cannot be built: ValueError: too small \(own_"
    ):
        kind.choose("own_things.refuses").build()
    with pytest.raises(RequestError, match=r"cannot be built: IndexError: .* \(own_things.py, line 5\)"):
        kind.choose("own_things.breaks").build()

    def refuses():
        Range(above=0).check(width=-1)

    with pytest.raises(RequestError, match=r"^thing refuses: width=-1 is not above 0$"):
        named("refuses", refuses, kind).build()


def test_build__leaves_the_defaults_to_the_target():
    def plain(path: str | None = None, *, width: float = 2):
        return path, width

    plain.__module__ = "dfkd.plain"
    component = named("plain:width=3", plain).checked()
    assert component.build() == (None, 3.0)


def test_build__keeps_an_error_that_says_more_than_its_text(own):
    class More(RequestError):
        pass

    def fails():
        raise More("more")

    with pytest.raises(More, match=r"^more$"):
        named("fails", fails, Kind("thing", ())).build()


def test_traits__are_what_is_declared_or_the_defaults():
    @dataclass(frozen=True)
    class Says(components.Traits):
        what: str = "nothing"

    @dataclass(frozen=True)
    class Other(components.Traits):
        what: str = "other"

    @Says("something")
    def declared():
        return 1

    assert declared() == 1
    assert Says.of(declared).what == "something" and Says.of(print).what == "nothing"
    assert Other.of(declared).what == "other", "what another kind declares is not its own"


@pytest.mark.parametrize("value", [0, -1.0, 1.5, float("inf"), float("nan")])
def test_range__names_the_parameter(value):
    SHARE.check(a=1, b=1e-9)
    with pytest.raises(RequestError, match=f"^b={value:g} is not above 0 and at most 1$"):
        SHARE.check(a=1, b=value)
