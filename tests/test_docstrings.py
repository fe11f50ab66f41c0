"""Docstrings of the public interface, as docs/api.md shows them: what each must have, and examples that run."""

import ast
import doctest
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import dfkd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
try:
    import make_api
finally:
    sys.path.pop(0)
FOUND = {f"{file}: {name}": (name, node, holder) for file, name, node, holder in make_api.public()}
DOCUMENTED = {
    name.partition(".")[2] for name, node, _ in FOUND.values() if "Returns:" in (ast.get_docstring(node) or "")
}
"""Methods that one class documents; another that overrides them need not do so again."""
MODULES = sorted({where.partition(".py")[0].replace("/", ".") for where in FOUND} | {"dfkd.distill.alone"})


def is_property(node):
    return any("property" in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", ()))


def section(text, title):
    """The lines of a section, or nothing."""
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    return found[1] if found else ""


def test_public_names__are_all_on_the_page():
    named = {name for names in make_api.PUBLIC["dfkd"][1].values() for name in names}
    assert {*dfkd.__all__} == {*named, "losses"}
    assert len(FOUND) > 70


@pytest.mark.parametrize("where", FOUND)
def test_docstring__has_a_first_line_that_stands_alone(where):
    text = ast.get_docstring(FOUND[where][1])
    assert text, "no docstring"
    first, *rest = text.splitlines()
    assert first.endswith(".") and len(first) <= 120 and (not rest or not rest[0])


@pytest.mark.parametrize("where", FOUND)
def test_docstring__names_every_argument_and_what_is_returned(where):
    name, node, holder = FOUND[where]
    text = ast.get_docstring(node)
    overrides = holder is not None and name.partition(".")[2] in DOCUMENTED
    if is_property(node) or (overrides and "Args:" not in text and "Returns:" not in text):
        return
    said = re.findall(r"^    (\w+): ", section(text, "Args"), re.MULTILINE)
    wanted = [argument.arg for argument in make_api.parameters(node)]
    assert said == wanted
    returns = None if isinstance(node, ast.ClassDef) or node.returns is None else ast.unparse(node.returns)
    assert bool(section(text, "Returns")) == (returns not in (None, "None"))


@pytest.mark.parametrize("where", [where for where, (_, node, _) in FOUND.items() if isinstance(node, ast.ClassDef)])
def test_class__says_what_each_attribute_is(where):
    assert not [field for field, text in make_api.attributes(FOUND[where][1]) if not text]


@pytest.mark.parametrize("name", dfkd.losses.__all__)
def test_loss__has_a_formula_shapes_its_options_and_a_paper(name):
    if name == "Outputs":
        return
    loss = getattr(dfkd.losses, name)
    text = inspect.getdoc(loss)
    assert text.splitlines()[0].endswith(".") and not text.splitlines()[1]
    assert re.search(r"^    \S", text, re.MULTILINE), "no formula on a line of its own"
    assert re.search(r"\[\w+,\s[\w\s,*]+\]", text), "no shape"
    assert not [option for option in inspect.signature(loss).parameters if not re.search(rf"\b{option}\b", text)]
    assert re.fullmatch(r"\d{4}\.\d{4,5}|https://\S+", loss.paper.at)


@pytest.mark.parametrize("module", MODULES)
def test_examples__give_what_they_show(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(module), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert not found.failed


def test_examples__are_there():
    finder = doctest.DocTestFinder()
    tested = [test for module in MODULES for test in finder.find(importlib.import_module(module)) if test.examples]
    assert len(tested) >= 7
