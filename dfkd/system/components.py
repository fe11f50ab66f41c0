"""Components: the classes and functions that `NAME[:key=value,...]` texts name, with their options checked.

A `Kind` says where names are looked up and which parameters the caller sets. A `Component` is the class or function
that one text names. `Traits` holds what a function declares besides its parameters.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from dfkd.system import names
from dfkd.system.code import code_of
from dfkd.system.errors import RequestError, nearest
from dfkd.system.files import hash_file
from dfkd.system.foreign import Foreign

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Declared = TypeVar("_Declared", bound="Traits")
_ATTRIBUTE = "__dfkd_traits__"


class Traits:
    """Base class of the properties that a function declares besides its parameters.

    Subclasses are frozen dataclasses whose fields have defaults. An instance is used as the function's decorator.
    """

    def __call__(self, function: _Function) -> _Function:
        """Attach the declaration to a function, and return the function unchanged."""
        setattr(function, _ATTRIBUTE, self)
        return function

    @classmethod
    def of(cls: type[_Declared], target: Callable[..., Any]) -> _Declared:
        """Return the declaration of `target`, or one with the defaults."""
        declared = getattr(target, _ATTRIBUTE, None)
        return declared if isinstance(declared, cls) else cls()


@dataclass(frozen=True)
class Kind:
    """One kind of component, such as losses."""

    name: str
    """Name of the kind in error messages."""
    modules: tuple[str, ...]
    """Modules in which names without a dot are looked up."""
    given: tuple[str, ...] = ()
    """Parameters that the caller sets. Options cannot set them."""
    numbers: int = 0
    """Largest number of items without a key in a text. A loss has one, its weight."""
    failure: str = "cannot be built"
    """Wording of the error message when a target raises an exception."""
    reads_files: bool = False
    """Whether options can name files. The identity then includes hashes of the files."""

    def look_up(self, text: str) -> "Component":
        """Return the component that `text` names, with options as written. Raises: RequestError if there is none."""
        named = names.parse(text)
        return Component(self, names.find(named.name, self.modules, self.name), named, self.given)

    def choose(self, text: str) -> "Component":
        """Return the component that `text` names, checked. Raises: RequestError as `Component.checked`."""
        return self.look_up(text).checked()


@dataclass(frozen=True)
class Component:
    """A class or function with the options for its call."""

    kind: Kind
    target: Callable[..., Any]
    named: names.Named
    """Name and options: as written, or spelled in full once `checked`."""
    given: tuple[str, ...] = ()
    """Parameters that the caller sets."""
    calls_with: Mapping[str, Any] | None = None
    """Converted options that the text sets, or None until `checked`. The target has the other options' defaults."""

    @property
    def name(self) -> str:
        """Name without options."""
        return self.named.name

    @property
    def options(self) -> Mapping[str, Any]:
        """Values of the parameters that options set."""
        return self.named.options

    @property
    def is_own(self) -> bool:
        """Whether the target is the user's or another package's, imported by a name with dots."""
        return "." in self.named.name

    @property
    def code(self) -> str | None:
        """Hash of the target's code and of all code that the target reaches. None for packages with a version."""
        return code_of(self.target, self.name)

    @property
    def text(self) -> str:
        """Spelling, which parses to the same component."""
        return str(self.named)

    @property
    def short(self) -> str:
        """Spelling without options that have their default."""
        defaults = names.converted(self.target, self.defaults, self.name)
        options = {key: value for key, value in self.options.items() if (key, value) not in defaults.items()}
        return str(replace(self.named, options=options))

    @property
    def identity(self) -> str:
        """Spelling with hashes of foreign code and of files that options name: all that decides the results."""
        code = self.code
        files = [v for v in self.options.values() if isinstance(v, str)] if self.kind.reads_files else []
        read = "".join(f" (file {hash_file(Path(file))[:16]})" for file in files if Path(file).is_file())
        return self.text + (f" (code {code})" if code else "") + read

    @property
    def parameters(self) -> list[inspect.Parameter]:
        """Parameters of the target that are not `given`. Raises: RequestError if the signature is not available."""
        with Foreign(f"{self.kind.name} {self.name!r} has parameters that cannot be known:", self.target):
            found = inspect.signature(self.target).parameters.values()
        return [parameter for parameter in found if parameter.name not in self.given]

    @property
    def defaults(self) -> dict[str, Any]:
        """Defaults of the parameters that an option can set."""
        return {p.name: p.default for p in self.parameters if p.default is not p.empty}

    def set(self, **options: Any) -> "Component":
        """Return a copy with further options, which is to be checked again."""
        return replace(self, calls_with=None, named=replace(self.named, options={**self.options, **options}))

    def without(self, *keys: str) -> "Component":
        """Return a copy without some options, which is to be checked again."""
        kept = {key: value for key, value in self.options.items() if key not in keys}
        return replace(self, calls_with=None, named=replace(self.named, options=kept))

    def preset(self, **options: Any) -> "Component":
        """Return a copy with `options` where the text sets none. The copy is to be checked again."""
        return replace(self, calls_with=None, named=replace(self.named, options={**options, **self.options}))

    def weighed(self, *numbers: float) -> "Component":
        """Return a copy with other numbers."""
        return replace(self, named=replace(self.named, numbers=numbers))

    def checked(self) -> "Component":
        """Return a copy under the target's own lower-case name, with its defaults filled in and its values converted.

        Because the defaults are filled in, a later change of a default changes the request. Names with dots keep the
        options as written. The hash of their code stands for the rest.
        Raises: RequestError for an unknown or missing key, a value of the wrong type or out of range, and a number that
        belongs to no parameter.
        """
        options = self._checked_options(self.named.numbers[self.kind.numbers :])
        if self.is_own:
            return replace(self, named=replace(self.named, options=options), calls_with=options)
        defaults = names.converted(self.target, self.defaults, self.name)
        full = names.Named(self.target.__name__.lower(), defaults | options, self.named.numbers)
        return replace(self, named=full, calls_with=options)

    def build(self, **given: Any) -> Any:
        """Call the target with its options and with `given`, and return the result.

        Raises: RequestError for options that do not fit, for values that the target refuses, and for exceptions in
        foreign code.
        """
        options = self._checked_options() if self.calls_with is None else self.calls_with
        what = f"{self.kind.name} {self.text!r} {self.kind.failure}:"
        try:
            with Foreign(what, self.target), names.settings_kept():
                return self.target(**given, **options)
        except RequestError as error:
            if type(error) is not RequestError:  # a subclass says more than its text, or who raised it
                raise
            raise RequestError(f"{self.kind.name} {self.name}: {error}") from error
        except (TypeError, ValueError) as error:  # raised by code of dfkd
            raise RequestError(f"{what} {error}") from error

    def _checked_options(self, numbers: tuple[float, ...] = ()) -> dict[str, Any]:
        """Return the options, each converted to the annotated type of its parameter."""
        parameters = self.parameters
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        allowed = [p.name for p in named]
        kind, name = self.kind.name, self.name
        if numbers:
            keys = ", ".join(allowed)
            raise RequestError(
                f"{kind} '{name}:{numbers[0]:g}': {numbers[0]:g} is for no parameter"
                + (f"; write {name}:key={numbers[0]:g} with one of {keys}" if keys else f": {name} has none")
            )
        for key in self.options:
            if key not in allowed and not takes_any:
                raise RequestError(f"{kind} {name!r} has no parameter {key!r}{nearest(key, allowed)}")
        required = [p.name for p in named if p.default is p.empty]
        missing = [key for key in required if key not in self.options]
        if missing:
            has_one = {*self.given} & inspect.signature(self.target).parameters.keys()
            if self.given and not has_one:
                hint = f"its parameters must be called {' and '.join(self.given)}"
                raise RequestError(f"{kind} {name!r} has parameters {', '.join(missing)}; {hint}")
            raise RequestError(f"{kind} {name!r} needs {', '.join(missing)}: {name}:{missing[0]}=...")
        return names.converted(self.target, self.options, name)
