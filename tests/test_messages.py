"""All errors, notes and log lines of the package, read from its source.

`python tests/test_messages.py` lists them.
"""

import ast
import re
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "dfkd"
SPEAKERS = ("RequestError", "say")
LONGEST = 240
"""Characters of a message without its values."""


def text_of(node):
    """A string with {} for its values; None where the message is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def messages():
    """(file:line, who says it, text) of every message that is written where it is raised or printed."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                text = text_of(node.args[0])
                if name in SPEAKERS and text and text.strip():
                    yield f"{file.relative_to(PACKAGE.parent)}:{node.lineno}", name, text


@cache
def found():
    """All of them: not while the tests are collected, which every worker does."""
    return list(messages())


def broken(rule):
    return [f"{where}: {text}" for where, name, text in found() if rule(name, text)]


def test_messages__are_found():
    assert len(found()) > 300 and {name for _, name, _ in found()} == {*SPEAKERS}


def test_messages__are_one_short_line_without_a_full_stop():
    assert not broken(lambda name, text: len(text) > LONGEST or "\n" in text or re.search(r"(?<!\.\.)\.$", text))


def test_messages__speak_of_the_request_and_not_of_us():
    assert not broken(lambda name, text: re.search(r"\b(we|our|us|you|sorry|please|oops)\b", text, re.IGNORECASE))


def test_messages__say_what_something_is_not():
    """`is not a file`, which is read at once, and not `is no file`."""
    assert not broken(lambda name, text: re.search(r"\b(?<!there )(is|are|of) no (?!longer\b)(?!more\b)", text))


def test_messages__say_what_to_give_or_use():
    """`give another loss`, which names the act, and not `take another loss`."""
    assert not broken(lambda name, text: re.search(r"[;,] (or )?take ", text))


def test_messages__call_no_image_a_photograph_for_its_size():
    """A photograph is an image from a camera (docs/architecture.md), of any size."""
    assert not broken(lambda name, text: "photograph" in text and "junk" not in text)


def test_messages__begin_small():
    """An error stands behind the name of the command, a note behind the word note."""
    assert not broken(lambda name, text: re.match(r"[A-Z][a-z]+ |(note|warning): [A-Z][a-z]", text))


def test_errors__name_a_value_or_an_option_or_give_a_hint():
    assert not broken(lambda name, text: name == "RequestError" and not re.search(r"[{}=;:]|--", text))


if __name__ == "__main__":
    print("\n".join("\t".join(message) for message in found()))
