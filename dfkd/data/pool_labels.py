"""Labels of a pool's images: numbers, or names that stand for the classes of a model."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from dfkd.data.labels import ClassNames, labels_of_names, ordered_names
from dfkd.data.readers.reader import Reader
from dfkd.system.console import say
from dfkd.system.errors import RequestError

Named = tuple[list[str], Int64[np.ndarray, " images"]]
"""Names of classes, and each image's position in them."""


class PoolLabels:
    """Labels of images that several readers read.

    Named classes are looked up in the names that `--classes` gives, else in the names that the model itself has. The
    latter are used only if they include all of a reader's names.
    """

    def __init__(self, parts: Sequence[tuple[str, Reader]], given: ClassNames | None, own: ClassNames | None) -> None:
        """Take the readers by name, the names of `--classes`, and those of the model. No labels are read."""
        self._parts, self._given, self._own = parts, given, own if given is None else None
        self._known: dict[str, Named | None] = {}

    @property
    def identity(self) -> str | None:
        """Identity of the names that decide the labels. None if the data alone does."""
        if self._given is not None:
            return self._given.identity
        if self._own is None or not any(self._own_decides(name, reader) for name, reader in self._parts):
            return None
        return self._own.identity

    def read(self, classes: int | None) -> Int64[np.ndarray, " images"]:
        """Return the class of every image, for a model of `classes` classes.

        Raises: RequestError as `Pool.labels`.
        """
        if self._given is not None and classes is not None:
            self._given.check(classes)
        labels = []
        for name, reader in self._parts:
            labels.append(self._of(name, reader, classes))
            if labels[-1].min() < 0:
                raise RequestError(
                    f"{name!r} has images without a label ({labels[-1].min()}); give a split that has them"
                )
        return np.concatenate(labels)

    def class_names(self, classes: int) -> tuple[str, ...]:
        """Return the names of a model's classes by `read`: of `--classes`, or of the class folders; else none."""
        if self._given is not None:
            return self._given.names
        name, reader = self._parts[0]
        named = self._named(name, reader) if len(self._parts) == 1 and reader.classes_by_name else None
        return () if named is None else ordered_names(*named, classes)

    def _of(self, name: str, reader: Reader, classes: int | None) -> Int64[np.ndarray, " images"]:
        own, given = self._own, self._given
        if own is not None and own.count == classes and (named := self._named(name, reader)) is not None:
            unknown = own.unknown(_used(named))
            if not unknown:
                return labels_of_names(*named, repr(name), own)
            if reader.classes_by_name and ordered_names(*named, classes):
                say(
                    f"note: the model's class names do not identify {unknown[0]!r}, so the class folders of {name!r} "
                    "count in sorted order; --classes FILE says which is which"
                )
        if given is not None or reader.classes_by_name:
            named = self._named(name, reader)
            if named is not None:
                return labels_of_names(*named, repr(name), given, classes)
        if given is not None:
            say(f"note: --classes changes nothing for {name!r}, whose labels are numbers")
        return reader.labels()

    def _named(self, name: str, reader: Reader) -> Named | None:
        """Return the named labels of a reader, which are read once."""
        if name not in self._known:
            self._known[name] = reader.named_labels()
        return self._known[name]

    def _own_decides(self, name: str, reader: Reader) -> bool:
        """Return whether the model's own names give other labels than the data alone."""
        assert self._own is not None
        try:
            named = self._named(name, reader)
        except RequestError:  # without labels
            return False
        if named is None or self._own.unknown(_used(named)):
            return False
        by_name = labels_of_names(*named, repr(name), self._own)
        try:
            if reader.classes_by_name:
                alone = labels_of_names(*named, repr(name), None, self._own.count)
            else:
                alone = reader.labels()
        except RequestError:  # the data alone has no order
            return True
        return not np.array_equal(alone, by_name)


def _used(named: Named) -> list[str]:
    """Return the names of classes that have images."""
    names, positions = named
    return [names[k] for k in np.unique(positions).tolist()]
