"""Text for the terminal: escapes for unprintable characters, summaries of numbers per class, and aligned tables."""

import shlex
from collections.abc import Sequence
from statistics import median

LISTED_CLASSES = 20
"""Largest number of classes for which a line lists every number. For more classes, a line lists the extremes."""
EXTREMES = 5


def visible(text: str) -> str:
    """Return `text` as one line of printable characters; other characters become Python escapes.

    File names and manifests come from anywhere. A line break could imitate a line of dfkd. A terminal's escape sequence
    or a change of writing direction could hide text. A lone surrogate cannot be printed at all.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def inspect_command(folder: str) -> str:
    """Return the command that writes a selection's HTML page, quoted for a shell."""
    return f"dfkd inspect {shlex.quote(folder)} --out {shlex.quote(folder + '.html')}"


def class_name(number: int, names: Sequence[str] = ()) -> str:
    """Return a class's number and, if known, its name. A negative number means that the logits are not finite."""
    if number < 0:
        return "not finite"
    return f"{number} {names[number]}" if number < len(names) else str(number)


def of_classes(values: Sequence[float | int | None], all_in: str, form: str = "", names: Sequence[str] = ()) -> str:
    """Return one line with a number for each class: every number of few classes, else a summary.

    Values of None stand for classes without images. `form` is the numbers' format specification. `names` are the
    classes' names, if known. `all_in` says where a summary's reader finds all numbers.
    """
    if len(values) <= LISTED_CLASSES:
        cells = ["None" if value is None else format(value, form) for value in values]
        named = [f"{name} {cell}" for name, cell in zip(names, cells, strict=True)] if names else []
        return ", ".join(named) or " ".join(cells)
    known = [(value, k) for k, value in enumerate(values) if value is not None]
    missing = f" ({len(values) - len(known):,} without images)" if len(known) < len(values) else ""
    if not known:
        return f"{len(values):,} classes{missing}"
    ranked, middle = sorted(known), median(value for value, _ in known)
    ends = {"least": ranked[:EXTREMES], "most": sorted(known, key=lambda one: (-one[0], one[1]))[:EXTREMES]}
    called = names or [f"class {k}" for k in range(len(values))]
    shown = (f"{word} {', '.join(f'{value:{form}} ({called[k]})' for value, k in some)}" for word, some in ends.items())
    return f"{len(values):,} classes{missing}: {'; '.join(shown)}; median {middle:{form}}; all are in {all_in}"


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return a table as aligned text, two spaces between columns. `left` has the numbers of left-aligned columns."""
    head, body = [visible(cell) for cell in head], [[visible(cell) for cell in line] for line in body]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *body)
    )


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 image`, `1,200 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _visible(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def few(keys: Sequence[str], show: int = 3) -> str:
    """Return the first `show` of several keys in words."""
    return ", ".join(keys[:show]) + (", ..." if len(keys) > show else "")
