"""Text for people: what may not be printed is written out, and tables survive a pipe."""

import shlex
from collections.abc import Sequence


def visible(text: str) -> str:
    """`text` in one line of characters that only show themselves: all others are written as Python escapes.

    File names and manifests come from anywhere. A line break in them could fake a line of ours, a terminal's escape or
    a change of writing direction could hide what is there, and half a surrogate cannot be printed at all.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def inspect_command(folder: str) -> str:
    """The command that shows a selection, as a shell takes it."""
    return f"dfkd inspect {shlex.quote(folder)} --out {shlex.quote(folder + '.html')}"


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
