"""Identity of foreign code: a hash of a definition and of all code that it reaches in the user's files."""

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from dfkd.system.versions import WITH_VERSION

_DYNAMIC = frozenset(("globals", "eval", "exec", "__import__"))
"""Functions that can reach names which the code does not mention."""
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def code_of(target: Callable[..., Any], name: str = "") -> str | None:
    """Return a hash of a user's class or function and of all code that it reaches.

    The result is None for packages with a version. `name` is the dotted name under which the user imported `target`.
    Comments, docstrings, layout and definitions that are not reached do not change the hash. Names are followed into
    other modules, unless the modules are installed. Code of a notebook's cell has no file: its byte code is hashed.
    """
    if target.__module__.partition(".")[0] in WITH_VERSION:
        return None
    try:
        file = inspect.getsourcefile(target)
    except TypeError:  # built in
        return None
    except OSError:  # a class of a notebook
        file = None
    if not file or not Path(file).is_file():
        from dfkd.system.loaded_code import loaded_code  # needs torch

        return loaded_code(target)
    whole = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    try:
        walk = _Walk(_Module(Path(file), target.__module__))
        walk.take(target.__module__, target.__qualname__.partition(".")[0])
        walk.take(*name.rpartition(".")[::2])
    except (SyntaxError, ValueError):  # the source is not plain Python
        return whole
    if not walk.written:
        return whole
    return hashlib.sha256("\n".join(sorted(walk.written)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


class _Module:
    """Top-level statements of a file, by the names that they bind."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.bound: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        """Imported module, and the name in it (empty for the module itself), by the name that is bound."""
        self.stars: list[str] = []
        """Modules that are imported by `from module import *`."""
        self._loose: list[ast.stmt] = []
        for statement in ast.parse(path.read_bytes()).body:
            if not _is_script(statement):
                self._add(statement)

    def _add(self, statement: ast.stmt) -> None:
        binds = False
        for node in _at_top(statement):
            for name, source, attribute in _imports(node, self.package):
                if name == "*":
                    self.stars.append(source)
                else:
                    self.imports[name] = source, attribute
                binds = True
            for name in _binds(node):
                self.bound.setdefault(name, []).append(statement)
                binds = True
        if not binds or (isinstance(statement, _DEFINITIONS) and statement.decorator_list):
            self._loose.append(statement)

    def has(self, name: str) -> bool:
        """Return whether the file binds a name. A star import may bind any name."""
        return name in self.bound or name in self.imports or bool(self.stars)

    @cached_property
    def effects(self) -> list[tuple[ast.stmt, frozenset[str]]]:
        """Statements that may change other definitions, such as a registration, with the names that they mention."""
        found = []
        for statement in self._loose:
            parts = statement.decorator_list if isinstance(statement, _DEFINITIONS) else [statement]
            mentioned = {name for part in parts for name in _names(part)}
            called = (s for name in mentioned for s in self.bound.get(name, ()) if isinstance(s, _DEFINITIONS))
            mentioned |= {name for definition in called for name in _names(definition)}
            found.append((statement, frozenset(mentioned & self.bound.keys())))
        return found


class _Walk:
    """Collection of the statements that some names reach, followed from name to name."""

    def __init__(self, module: _Module) -> None:
        self.written: set[str] = set()
        self._modules = {module.path: module}
        self._first = module
        self._seen: set[tuple[Path, str]] = set()
        self._follows = not _is_installed(module.path)

    def take(self, source: str, name: str) -> None:
        """Add the statements that a name of a module reaches."""
        module = self._first if source == self._first.name else self._open(source)
        todo = [(module, name)] if module is not None else []
        while todo:
            module, name = todo.pop()
            if (module.path, name) not in self._seen:
                self._seen.add((module.path, name))
                todo += self._step(module, name)

    def _step(self, module: _Module, name: str) -> Iterator[tuple[_Module, str]]:
        """Add the statements of one name, and yield the names that they mention."""
        statements = [*module.bound.get(name, ()), *(s for s, touched in module.effects if name in touched)]
        for statement in statements:
            self.written.add(_text(statement))
            yield from self._mentioned(module, statement)
        if name in module.imports:
            yield from self._imported(*module.imports[name], name)
        elif not statements:
            yield from ((own, name) for star in module.stars if (own := self._open(star)) and own.has(name))

    def _mentioned(self, module: _Module, statement: ast.stmt) -> Iterator[tuple[_Module, str]]:
        names, imports = _names(statement), dict(module.imports)
        for node in ast.walk(statement):
            for name, source, attribute in _imports(node, module.package):  # also imports within a function
                imports[name] = source, attribute
                yield from self._imported(source, attribute, name)
            first, *path = _dotted(node) or [""]
            if first in imports:
                yield from self._along(".".join(filter(None, imports[first])), path)
            if [first, *path] == ["sys", "modules"] or first in _DYNAMIC:
                names |= module.bound.keys()
        yield from ((module, name) for name in names)

    def _imported(self, source: str, attribute: str, name: str) -> Iterator[tuple[_Module, str]]:
        """Yield the definition of an imported name in a user's module. For other modules, record the import."""
        own = self._open(source)
        if own is None:
            self.written.add(f"import {source} {attribute} as {name}")
        elif attribute and own.has(attribute):
            yield own, attribute

    def _along(self, source: str, path: list[str]) -> Iterator[tuple[_Module, str]]:
        """Yield the user's module and name that a dotted path `module.a.b` leads to."""
        for length, name in enumerate(path):
            own = self._open(".".join([source, *path[:length]]))
            if own is not None and own.has(name):
                yield own, name

    def _open(self, name: str) -> _Module | None:
        """Return the module of that name if it is a user's module, else None."""
        if not self._follows or name.partition(".")[0] in WITH_VERSION | sys.stdlib_module_names:
            return None
        path = _source(name)
        if path is None or _is_installed(path):
            return None
        if path not in self._modules:
            try:
                self._modules[path] = _Module(path, name)
            except (SyntaxError, ValueError, OSError):
                return None
        return self._modules[path]


def _source(name: str) -> Path | None:
    """Return the source file of a module, without importing the module itself."""
    first, *others = name.split(".")
    try:
        spec: ModuleSpec | None = importlib.util.find_spec(first)
        for i in range(len(others)):
            above = spec.submodule_search_locations if spec else None
            spec = PathFinder.find_spec(".".join([first, *others[: i + 1]]), list(above)) if above else None
    except (ImportError, ValueError, AttributeError):
        return None
    found = spec.origin if spec and spec.has_location else None
    return Path(found) if found and found.endswith(".py") else None


def _is_installed(path: Path) -> bool:
    folders = {sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib")}
    return any(path.is_relative_to(folder) for folder in folders if folder)


def _is_script(statement: ast.stmt) -> bool:
    """Return whether a statement is `if __name__ == "__main__": ...`."""
    return isinstance(statement, ast.If) and "__name__" in _names(statement.test)


def _at_top(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield a statement and the statements within its `if` or `try` blocks, without bodies of functions and classes."""
    yield statement
    if not isinstance(statement, _DEFINITIONS):
        for child in ast.iter_child_nodes(statement):
            if isinstance(child, ast.stmt):
                yield from _at_top(child)
            elif isinstance(child, (ast.ExceptHandler, ast.match_case)):
                for inner in child.body:
                    yield from _at_top(inner)


def _binds(node: ast.AST) -> Iterator[str]:
    """Yield the names that one statement itself binds or changes."""
    if isinstance(node, _DEFINITIONS):
        yield node.name
    targets: list[ast.expr] = []
    if isinstance(node, (ast.Assign, ast.Delete)):
        targets = list(node.targets)
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.For, ast.AsyncFor)):
        targets = [node.target]
    elif isinstance(node, (ast.With, ast.AsyncWith)):
        targets = [item.optional_vars for item in node.items if item.optional_vars]
    for target in targets:
        for part in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
            while isinstance(part, (ast.Attribute, ast.Subscript, ast.Starred)):  # Net.forward = ..., SIZES["a"] = ...
                part = part.value
            if isinstance(part, ast.Name):
                yield part.id


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _dotted(node: ast.AST) -> list[str]:
    """Return `a.b.c`, or a single name, as a list of names. Return an empty list for other expressions."""
    path: list[str] = []
    while isinstance(node, ast.Attribute):
        path.insert(0, node.attr)
        node = node.value
    return [node.id, *path] if isinstance(node, ast.Name) else []


def _imports(node: ast.AST, package: str) -> Iterator[tuple[str, str, str]]:
    """Yield the bound name, the module, and the name in the module (empty for the module itself) of an import."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            first = alias.name.partition(".")[0]
            yield alias.asname or first, alias.name if alias.asname else first, ""
    if isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        above = parts[: len(parts) - node.level + 1] if node.level else []
        source = ".".join(filter(None, [*above, node.module]))
        for alias in node.names:
            yield alias.asname or alias.name, source, alias.name


def _text(node: object) -> str:
    """Return a syntax tree as text without docstrings. The text does not depend on layout or Python's version."""
    if isinstance(node, ast.AST):
        fields = (f"{name}={_text(value)}" for name, value in ast.iter_fields(node) if _counts(name, value))
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(_text(item) for item in node if not _is_remark(item))}]"
    return repr(node)


def _counts(name: str, value: object) -> bool:
    """Return whether a field has content. Later versions of Python add empty fields."""
    return not (value is None or value == [] or name in ("ctx", "kind", "type_comment"))


def _is_remark(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
