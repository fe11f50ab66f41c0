"""The rooms of the house: a package imports only of those before it, so that data goes one way."""

import ast
from pathlib import Path

import pytest

import dfkd

HOUSE = Path(dfkd.__file__).parent
ROOMS = ["config", "models", "data", "select", "training", "generators", "distill", "compare"]


def imported(file):
    """The packages of dfkd that a file imports of, also within functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        yield from (name.split(".")[1] for name in names if name.startswith("dfkd."))


def test_every_package_is_a_room():
    packages = {path.parent.name for path in HOUSE.glob("*/__init__.py")}
    assert packages == {*ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_opens_only_to_those_before_it(room):
    later = {*ROOMS[ROOMS.index(room) + 1 :]}
    files = [*(HOUSE / room).rglob("*.py")]
    assert files
    found = {(str(file.relative_to(HOUSE)), name) for file in files for name in imported(file)}
    assert not {(file, name) for file, name in found if name in later}


def test_no_module_beside_the_rooms_needs_a_room_that_needs_it():
    rooms = {room: [*(HOUSE / room).rglob("*.py")] for room in ROOMS} | {f.stem: [f] for f in HOUSE.glob("*.py")}
    needs = {
        room: {name for file in files for name in imported(file)} & {*rooms} - {room} for room, files in rooms.items()
    }
    all_of = {room: {*of} for room, of in needs.items()}
    for _ in rooms:  # what is needed by what is needed, and so on
        for of in all_of.values():
            of.update(*(needs[name] for name in of))
    assert not [room for room, of in all_of.items() if room in of]
