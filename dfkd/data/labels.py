"""Conversion of class names to labels: which of a model's classes a folder, or a name in a table, stands for."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from dfkd.system.errors import RequestError, nearest, reason
from dfkd.system.files import hash_of, user_path
from dfkd.system.text import few

_FORM = "one class a line in the model's order, or JSON: a list, or a table of numbers and names"
_NUMBERED = re.compile(r"(\d+)[\s:,;]+(\S.*)|(\S.*?)[\s:,;]+(\d+)")
"""Line with a number and a name: `0: tench` or `tench 0`."""
_KEY = re.compile(r"([a-z]\d{6,})[\s:,;]+(\S.*)")
"""Name after a WordNet key: `n01440764 tench`."""


class ClassNames:
    """Names of a model's classes, from a file or of the model itself. Every class has one or more names."""

    def __init__(self, text: str, option: str = "--classes ") -> None:
        """Read the FILE of an option, which messages name before the text.

        Raises: RequestError if the file cannot be read or is not a list of classes.
        """
        said = f"{option}{text}"
        try:
            content = user_path(text).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise RequestError(f"{said} cannot be read: {reason(error)}") from None
        listed = _of_json(content) if content.lstrip()[:1] in ("{", "[") else _of_lines(content)
        if not listed:
            raise RequestError(f"{said} lists no classes: it holds {_FORM}")
        self._take(listed, said)

    @classmethod
    def of_model(cls, names: Sequence[str]) -> "ClassNames":
        """Return the names that a model has for its own classes, in order."""
        found = cls.__new__(cls)
        found._take(_checked(dict(enumerate(names))), "the model")
        return found

    def _take(self, listed: Mapping[int, list[str]], said: str) -> None:
        """Keep the names of each class. Messages begin with `said`."""
        self._said = said
        self.count = max(listed) + 1
        self.names = tuple(listed[k][0] if k in listed else str(k) for k in range(self.count))
        """First name of every class."""
        self.identity = hash_of([[k, names] for k, names in sorted(listed.items())])
        self._exact = _unique((name, k) for k, names in listed.items() for name in names)
        self._alike = _unique((_alike(name), k) for name, ks in self._exact.items() for k in ks)

    def check(self, classes: int) -> None:
        """Raise RequestError unless the file lists as many classes as the model has."""
        if self.count != classes:
            raise RequestError(f"{self._said} lists {self.count} classes, and the model has {classes}")

    def has(self, name: str) -> bool:
        """Return whether a class has exactly this name."""
        return name in self._exact

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Return those of some names that are not the name of exactly one class."""
        return [name for name in names if len(self._exact.get(name) or self._alike.get(_alike(name)) or []) != 1]

    def find(self, name: str, where: str) -> int:
        """Return the class of a name.

        If there is no exact match, case, spaces, hyphens and underscores are ignored. `where` is the place of the name
        in error messages.
        Raises: RequestError if no class or several classes match.
        """
        found = self._exact.get(name) or self._alike.get(_alike(name)) or []
        if len(found) == 1:
            return found[0]
        if found:
            raise RequestError(
                f"{self._said} gives the name {name!r}, of {where}, to classes {_listed(found)}; give each class "
                "another name"
            )
        raise RequestError(f"{self._said} lists no class {name!r} of {where}{nearest(name, self._exact)}")


def labels_of_names(
    names: Sequence[str],
    positions: Int64[np.ndarray, " images"],
    where: str,
    known: ClassNames | None = None,
    classes: int | None = None,
) -> Int64[np.ndarray, " images"]:
    """Return the labels of images with named classes. `positions` has each image's index in the sorted `names`.

    Names are looked up in `known`. Without `known`, names that are whole numbers are the labels. Other names count in
    sorted order if there are as many as the model has `classes`.
    Raises: RequestError if the numbers differ, because the order of the classes is then unknown.
    """
    numbers, used = _numbers(names), np.unique(positions).tolist()
    if known is not None and not (numbers and not any(known.has(names[k]) for k in used)):
        of_name = {k: known.find(names[k], where) for k in used}
    elif numbers is not None:
        of_name = {k: numbers[k] for k in used}
    elif classes in (None, len(names)):
        return positions
    elif classes == len(used):
        of_name = {k: label for label, k in enumerate(used)}
    else:
        shown = few([repr(names[k]) for k in used], 4)
        raise RequestError(
            f"{where} has {len(used)} named classes ({shown}) and the model {classes}; give --classes FILE "
            f"with the names of the model's classes: {_FORM}"
        )
    table = np.full(len(names), -1, np.int64)
    table[list(of_name)] = list(of_name.values())
    return table[positions]


def ordered_names(names: Sequence[str], positions: Int64[np.ndarray, " images"], classes: int) -> tuple[str, ...]:
    """The names of a model's classes where they count in sorted order, as `labels_of_names` has it; else none."""
    used = np.unique(positions).tolist()
    if _numbers(names) is not None or classes not in (len(names), len(used)):
        return ()
    return tuple(names) if classes == len(names) else tuple(names[k] for k in used)


def _numbers(names: Sequence[str]) -> list[int] | None:
    """Return the names as numbers if they are different whole numbers, else None."""
    if not all(name.isascii() and name.isdigit() and len(name) <= 18 for name in names):
        return None
    numbers = [int(name) for name in names]
    return numbers if len({*numbers}) == len(numbers) else None


def _of_json(content: str) -> dict[int, list[str]]:
    try:
        value: Any = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if isinstance(value, dict):  # the configuration of a Hugging Face model
        value = next((value[key] for key in ("id2label", "label2id") if isinstance(value.get(key), dict)), value)
    if isinstance(value, list):
        return _checked(dict(enumerate(value)))
    if not isinstance(value, dict):
        return {}
    if all(key.isascii() and key.isdigit() for key in value):
        return _checked({int(key): names for key, names in value.items()})
    if all(type(number) is int for number in value.values()):
        turned: dict[int, Any] = {}
        for name, number in value.items():
            turned.setdefault(number, []).append(name)
        return _checked(turned)
    return {}


def _of_lines(content: str) -> dict[int, list[str]]:
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    pairs = [match for line in lines if (match := _NUMBERED.fullmatch(line))]
    for number, name in ((1, 2), (4, 3)):
        by_number = {int(pair[number]): [pair[name], pair[0]] for pair in pairs if pair[number]}
        if sorted(by_number) == [*range(len(lines))]:
            return _checked(by_number)
    return _checked(dict(enumerate(lines)))


def _checked(listed: Mapping[int, Any]) -> dict[int, list[str]]:
    """Return every class with all its names. The result is empty if the table is not a list of classes."""
    found: dict[int, list[str]] = {}
    for number, value in listed.items():
        names = [value] if isinstance(value, str) else value
        if number < 0 or not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            return {}
        found[number] = [part for name in names for part in _all_names(name.strip())]
    return found


def _all_names(name: str) -> list[str]:
    """Return the variants of `n01440764 tench, Tinca tinca`: the whole, the key, the names, each synonym."""
    key = _KEY.fullmatch(name)
    names = [name, key[1], key[2]] if key else [name]
    synonyms = [part.strip() for part in names[-1].split(",")]
    return list(dict.fromkeys([*names, *(synonyms if len(synonyms) > 1 else ())]))


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """Return the classes of each name."""
    found: dict[str, list[int]] = {}
    for name, number in pairs:
        if number not in found.setdefault(name, []):
            found[name].append(number)
    return found


def _alike(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.casefold()).strip()


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
