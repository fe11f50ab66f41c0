"""What a `NAME[:key=value,...]` names, found and checked: one record for losses, selection methods, filters and models.

A `Kind` says where its names are looked up and what its caller gives; a `Component` is what one text leads to. What a
function declares beside its parameters stands above it, as `Traits`.
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
    """Base of what a function declares of itself beside its parameters: frozen dataclasses whose fields have defaults.

    An instance stands above the function as its decorator.
    """

    def __call__(self, function: _Function) -> _Function:
        """Declare it of a function, which stays as it is."""
        setattr(function, _ATTRIBUTE, self)
        return function

    @classmethod
    def of(cls: type[_Declared], target: Callable[..., Any]) -> _Declared:
        """What `target` declares; the defaults where it declares nothing."""
        declared = getattr(target, _ATTRIBUTE, None)
        return declared if isinstance(declared, cls) else cls()


@dataclass(frozen=True)
class Kind:
    """One sort of components, such as losses."""

    name: str
    """What errors call one of them."""
    modules: tuple[str, ...]
    """Where a name without a dot is looked up."""
    given: tuple[str, ...] = ()
    """The parameters that the caller gives: no option sets them."""
    numbers: int = 0
    """How many numbers without a key a text may hold: a loss has its weight."""
    failure: str = "cannot be built"
    """What errors say where a target fails."""
    reads_files: bool = False
    """Whether an option can name a file: its content then is part of the identity."""

    def look_up(self, text: str) -> "Component":
        """What `text` names, with its options as they are written. Raises: RequestError where there is none."""
        named = names.parse(text)
        return Component(self, names.find(named.name, self.modules, self.name), named, self.given)

    def choose(self, text: str) -> "Component":
        """What `text` names, checked and spelled out. Raises: RequestError as `Component.checked`."""
        return self.look_up(text).checked()


@dataclass(frozen=True)
class Component:
    """A class or function with the options that it will be called with."""

    kind: Kind
    target: Callable[..., Any]
    named: names.Named
    """As it was written or, once `checked`, as it is spelled in full."""
    given: tuple[str, ...] = ()
    """The parameters that the caller gives."""
    calls_with: Mapping[str, Any] | None = None
    """The options that were written, once they are `checked`: the target has its defaults itself."""

    @property
    def name(self) -> str:
        """The name alone."""
        return self.named.name

    @property
    def options(self) -> Mapping[str, Any]:
        """What the parameters are set to."""
        return self.named.options

    @property
    def is_own(self) -> bool:
        """Whether it is the user's own, or another package's: it was imported by a name with dots."""
        return "." in self.named.name

    @property
    def code(self) -> str | None:
        """A hash of code of one's own and of what it reaches; None for packages with a version."""
        return code_of(self.target, self.name)

    @property
    def text(self) -> str:
        """The spelling, which parses to the same component."""
        return str(self.named)

    @property
    def identity(self) -> str:
        """The spelling with a hash of code of one's own and of the files that options name: everything that decides."""
        code = self.code
        files = [v for v in self.options.values() if isinstance(v, str)] if self.kind.reads_files else []
        read = "".join(f" (file {hash_file(Path(file))[:16]})" for file in files if Path(file).is_file())
        return self.text + (f" (code {code})" if code else "") + read

    @property
    def parameters(self) -> list[inspect.Parameter]:
        """The target's parameters that are not `given`. Raises: RequestError where they cannot be known."""
        with Foreign(f"{self.kind.name} {self.name!r} has parameters that cannot be known:", self.target):
            found = inspect.signature(self.target).parameters.values()
        return [parameter for parameter in found if parameter.name not in self.given]

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the parameters that an option can set."""
        return {p.name: p.default for p in self.parameters if p.default is not p.empty}

    def set(self, **options: Any) -> "Component":
        """The same with other options, to be checked again."""
        return replace(self, calls_with=None, named=replace(self.named, options={**self.options, **options}))

    def without(self, *keys: str) -> "Component":
        """The same without some options, to be checked again."""
        kept = {key: value for key, value in self.options.items() if key not in keys}
        return replace(self, calls_with=None, named=replace(self.named, options=kept))

    def preset(self, **options: Any) -> "Component":
        """The same with `options` that hold where the text does not say otherwise."""
        return replace(self, calls_with=None, named=replace(self.named, options={**options, **self.options}))

    def weighed(self, *numbers: float) -> "Component":
        """The same with other numbers."""
        return replace(self, named=replace(self.named, numbers=numbers))

    def checked(self) -> "Component":
        """The same by the target's own name, in lower case, with the defaults of what is not written: one that changes
        requests another thing. Values have the types of their parameters.

        What is named with dots keeps to what is written: its code decides the rest.
        Raises: RequestError for an unknown or missing key, a value of the wrong type or out of its range, and for a
        number that stands for no parameter.
        """
        options = self._checked_options(self.named.numbers[self.kind.numbers :])
        if self.is_own:
            return replace(self, named=replace(self.named, options=options), calls_with=options)
        defaults = names.converted(self.target, self.defaults, self.name)
        full = names.Named(self.target.__name__.lower(), defaults | options, self.named.numbers)
        return replace(self, named=full, calls_with=options)

    def build(self, **given: Any) -> Any:
        """Call the target with its options and what is `given`.

        Raises: RequestError for options that do not fit, for values that the target refuses, and for whatever goes
        wrong in code of one's own.
        """
        options = self._checked_options() if self.calls_with is None else self.calls_with
        what = f"{self.kind.name} {self.text!r} {self.kind.failure}:"
        try:
            with Foreign(what, self.target), names.settings_kept():
                return self.target(**given, **options)
        except RequestError as error:
            if type(error) is not RequestError:  # it says more than its text, or says already who raised it
                raise
            raise RequestError(f"{self.kind.name} {self.name}: {error}") from error
        except (TypeError, ValueError) as error:  # one of ours
            raise RequestError(f"{what} {error}") from error

    def _checked_options(self, numbers: tuple[float, ...] = ()) -> dict[str, Any]:
        """The options, each converted to the annotated type of the parameter that it sets."""
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
