"""The rooms of the house: one imports only of those before it, so that data goes one way."""

import ast
import re
from pathlib import Path

import pytest

import dfkd

HOUSE = Path(dfkd.__file__).parent
ROOMS = [
    "system",
    "config",
    "data",
    "formats",
    "models",
    "select",
    "training",
    "generators",
    "distill",
    "report",
    "app",
]
MAY_SEE_ALL = {"__init__.py", "__main__.py"}
PAGE = HOUSE.parent / "docs" / "architecture.md"


def imported(file):
    """The modules of dfkd that a file imports, also within functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
        yield from (name for name in names if name.startswith("dfkd."))


def module_of(name):
    """The file of a module, or of the module in which a name lies."""
    path = HOUSE.parent.joinpath(*name.split("."))
    for found in (
        path.with_suffix(".py"),
        path / "__init__.py",
        path.parent.with_suffix(".py"),
        path.parent / "__init__.py",
    ):
        if found.is_file():
            return found
    raise AssertionError(f"{name} is no module of the house")


def test_house__has_few_entries_and_each_room_says_what_lives_there():
    entries = [path for path in HOUSE.iterdir() if path.is_file() or any(path.rglob("*.py"))]  # else only caches
    assert {path.name for path in entries if path.is_dir()} == {*ROOMS}
    assert len(entries) <= 14
    for room in HOUSE.rglob("__init__.py"):
        said = ast.get_docstring(ast.parse(room.read_text(encoding="utf-8")))
        assert said and said.splitlines()[0].endswith("."), f"{room} does not say what lives there"


@pytest.mark.parametrize("room", ROOMS)
def test_room__imports_of_no_room_after_it(room):
    later = {*ROOMS[ROOMS.index(room) + 1 :]}
    files = [*(HOUSE / room).rglob("*.py")]
    assert files
    found = {(str(file.relative_to(HOUSE)), name.split(".")[1]) for file in files for name in imported(file)}
    assert not {(file, name) for file, name in found if name in later}


def test_modules__import_in_no_circle():
    files = [file for file in HOUSE.rglob("*.py") if file.name not in MAY_SEE_ALL]
    needs = {file: {module_of(name) for name in imported(file)} & {*files} - {file} for file in files}
    while leaves := [file for file, of in needs.items() if not of & {*needs}]:
        for file in leaves:
            del needs[file]
    assert not needs, f"a circle among {sorted(str(file.relative_to(HOUSE)) for file in needs)}"


def test_architecture_page__names_the_rooms_in_order_and_files_that_exist():
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| `dfkd/(\w+)` \|", text, re.MULTILINE) == ROOMS
    named = set(re.findall(r"`(dfkd/[\w/.]+)`", text))
    assert len(named) > 30
    assert not {name for name in named if not (HOUSE.parent / name).exists()}


def test_way_of_a_pixel__passes_at_most_14_files():
    way = PAGE.read_text(encoding="utf-8").partition("## The path of a pixel")[2].partition("\n## ")[0]
    files = re.findall(r"^\d+\. `([\w/.]+)`", way, re.MULTILINE)
    assert files and len(set(files)) == len(files) <= 14


def test_words__that_had_several_meanings_stay_out():
    """The glossary of `docs/architecture.md` has the words to use."""
    dropped = re.compile(r"(?<![a-z])(asked|mend)(?![a-z])")
    found = {(file.name, m[1]) for file in HOUSE.rglob("*.py") for m in dropped.finditer(file.read_text("utf-8"))}
    assert not found
