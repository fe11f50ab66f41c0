"""Shared parts of the HTML pages: markup in which text is always escaped, the page's frame and style sheet, and tables.

A page is one file. Its content security policy allows no request, and only the scripts of dfkd, which it identifies by
their hashes. The file can be mailed and opened anywhere.
"""

import base64
import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from dfkd import __version__
from dfkd.system.errors import RequestError
from dfkd.system.files import output_path, write_text
from dfkd.system.portable import portable
from dfkd.system.text import visible

VOID = ("img", "input", "meta")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {}"
LONG = 18
"""Characters of the longest word that a table's header does not break."""
SCRIPT = "page.js"
"""Script of every page."""


class Html(str):
    """Markup, as opposed to text that still has to be escaped."""

    __slots__ = ()


def html(value: object) -> Html:
    """Convert a value to markup: escape text, make control characters visible, and write the home folder as `~`."""
    return value if isinstance(value, Html) else Html(escape(visible(portable(str(value)))))


def join(parts: Iterable[object]) -> Html:
    """Convert values to markup, and concatenate the results."""
    return Html("".join(map(html, parts)))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element. `class_` is the attribute class, `_` in a name stands for `-`, and None omits an attribute."""
    given = [f' {key.rstrip("_").replace("_", "-")}="{html(v)}"' for key, v in attributes.items() if v is not None]
    start = f"<{name}{''.join(given)}>"
    return Html(start if name in VOID else f"{start}{join(children)}</{name}>")


def section(heading: str, *children: object) -> Html:
    """Return a part of the page under its heading."""
    return tag("section", tag("h2", heading), *children)


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]], *, words: bool = False) -> Html:
    """Return a table that scrolls sideways on a narrow screen. The first cell of a row is its header.

    Numbers are right-aligned. With `words`, every cell is left-aligned.
    """
    cells = (
        tag(
            "tr",
            _header(row[0], "row"),
            *(c if _is_cell(c) else tag("td", c) for c in row[1:]),
        )
        for row in rows
    )
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag("thead", tag("tr", *(_header(name, "col") for name in head))),
            tag("tbody", *cells),
            class_="words" if words else None,
        ),
        class_="scroll",
        role="region",
        aria_label=caption,
        tabindex=0,
    )


def definitions(pairs: Iterable[tuple[object, object]]) -> Html:
    """Return names and their values, one pair per line."""
    return tag("dl", *(part for name, value in pairs for part in (tag("dt", name), tag("dd", value))))


def page_path(out: str) -> Path:
    """Return the path of the page. Raises: RequestError unless `--out` is FILE.html."""
    output_path(out)
    path = Path(out)
    if path.suffix != ".html" or path.is_dir():
        raise RequestError(f"--out {out} is {'a folder' if path.is_dir() else 'not a page'}; give FILE.html")
    return path


def data(name: str, values: Mapping[str, Any]) -> Html:
    """Return values for a script of the page, as JSON under an id.

    `<` is escaped, so that no value ends the element.
    """
    text = json.dumps(values, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{html(name)}">{text}</script>')


def write_page(path: Path, title: str, *content: object, scripts: Sequence[str] = ()) -> None:
    """Write a page completely, or leave the old file.

    `scripts` are further files beside this module that the page runs.
    """
    codes = [_resource(name) for name in (SCRIPT, *scripts)]
    hashes = (base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in codes)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content=POLICY.format(" ".join(f"'sha256-{one}'" for one in hashes)),
        ),
        tag("title", title),
        tag("style", _resource("markup.css")),
        *(tag("script", code) for code in codes),
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", _when(), class_="note")),
        tag("main", *content),
        tag("footer", f"Written by dfkd {__version__}. This file loads nothing from elsewhere."),
    )
    write_text(path, f"<!doctype html>\n{tag('html', head, body, lang='en')}\n")


def _resource(name: str) -> Html:
    return Html((resources.files("dfkd.report") / name).read_text(encoding="utf-8"))


def _when() -> str:
    """Return the time of writing, and the version of dfkd."""
    return f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}, dfkd {__version__}"


def _header(name: object, scope: str) -> Html:
    """Return a header cell. A cell with a long word may be broken anywhere, so that its column is not too wide.

    A cell of several words is broken between them, also beside a bar.
    """
    words = "" if isinstance(name, Html) else str(name)
    is_long = max(map(len, words.split()), default=0) > LONG
    is_several = scope == "row" and len(words) > 2 * LONG
    return tag("th", name, scope=scope, class_="long" if is_long else "several" if is_several else None)


def _is_cell(value: object) -> bool:
    return isinstance(value, Html) and value.startswith("<td")
