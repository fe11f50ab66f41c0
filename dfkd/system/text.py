"""Text for people: what may not be printed is written out, and tables survive a pipe."""

import shlex
from collections.abc import Sequence
from statistics import median

LISTED_CLASSES = 20
"""Up to so many classes a line lists the numbers of all; of more it gives the extremes."""
EXTREMES = 5


def visible(text: str) -> str:
    """`text` in one line of characters that only show themselves: all others are written as Python escapes.

    File names and manifests come from anywhere. A line break in them could fake a line of ours, a terminal's escape or
    a change of writing direction could hide what is there, and half a surrogate cannot be printed at all.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def inspect_command(folder: str) -> str:
    """The command that shows a selection, as a shell takes it."""
    return f"dfkd inspect {shlex.quote(folder)} --out {shlex.quote(folder + '.html')}"


def class_name(number: int, names: Sequence[str] = ()) -> str:
    """A class by its number and, where it is known, its name; a number below 0 stands for an answer of no class."""
    if number < 0:
        return "not finite"
    return f"{number} {names[number]}" if number < len(names) else str(number)


def of_classes(values: Sequence[float | int | None], all_in: str, form: str = "", names: Sequence[str] = ()) -> str:
    """A number of each class in one line: all where they are few, else a summary; `all_in` says where all are.

    None stands for a class without images. `form` is a format of numbers, `names` are those of the classes if known.
    """
    if len(values) <= LISTED_CLASSES and names:
        cells = ("None" if value is None else format(value, form) for value in values)
        return ", ".join(f"{name} {cell}" for name, cell in zip(names, cells, strict=True))
    if len(values) <= LISTED_CLASSES:
        return " ".join("None" if value is None else format(value, form) for value in values)
    known = [(value, k) for k, value in enumerate(values) if value is not None]
    missing = f" ({len(values) - len(known):,} without images)" if len(known) < len(values) else ""
    if not known:
        return f"{len(values):,} classes{missing}"
    ranked, middle = sorted(known), median(value for value, _ in known)
    ends = {"least": ranked[:EXTREMES], "most": sorted(known, key=lambda one: (-one[0], one[1]))[:EXTREMES]}
    called = names or [f"class {k}" for k in range(len(values))]
    named = (f"{word} {', '.join(f'{value:{form}} ({called[k]})' for value, k in some)}" for word, some in ends.items())
    return f"{len(values):,} classes{missing}: {'; '.join(named)}; median {middle:{form}}; all are in {all_in}"


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Columns under their names, two spaces apart; those numbered in `left` on the left, the others on the right."""
    head, body = [visible(cell) for cell in head], [[visible(cell) for cell in line] for line in body]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *body)
    )


def _visible(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()
