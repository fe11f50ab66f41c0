"""What the HTML pages share: markup in which text is always escaped, the frame with its style sheet, and tables.

A page is one file: its policy allows it no request and no script but ours, which it knows by their hashes. It can be
mailed and opened anywhere.
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
"""Characters of a word that is not broken in a table's header."""
SCRIPT = "page.js"
"""What every page can do."""


class Html(str):
    """Markup, as opposed to text that still has to be escaped."""

    __slots__ = ()


def html(value: object) -> Html:
    """Any value as markup: text is escaped and visible, and the user's own folder in it is written `~`."""
    return value if isinstance(value, Html) else Html(escape(visible(portable(str(value)))))


def join(parts: Iterable[object]) -> Html:
    """Several values as markup, one after the other."""
    return Html("".join(map(html, parts)))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. `class_` is the attribute class, `_` in a name stands for `-`; None leaves an attribute out."""
    given = [f' {key.rstrip("_").replace("_", "-")}="{html(v)}"' for key, v in attributes.items() if v is not None]
    start = f"<{name}{''.join(given)}>"
    return Html(start if name in VOID else f"{start}{join(children)}</{name}>")


def section(heading: str, *children: object) -> Html:
    """A part of the page under its heading."""
    return tag("section", tag("h2", heading), *children)


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]], *, words: bool = False) -> Html:
    """A table that scrolls sideways on a narrow screen; a row's first cell is its header.

    Numbers stand on the right; `words` puts every cell on the left.
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
    """Names and their values, a line each."""
    return tag("dl", *(part for name, value in pairs for part in (tag("dt", name), tag("dd", value))))


def page_path(out: str) -> Path:
    """The page's file. Raises: RequestError where `--out` is not FILE.html."""
    output_path(out)
    path = Path(out)
    if path.suffix != ".html" or path.is_dir():
        raise RequestError(f"--out {out} is {'a folder' if path.is_dir() else 'not a page'}; give FILE.html")
    return path


def data(name: str, values: Mapping[str, Any]) -> Html:
    """Values for a script of the page, as JSON under an id. It is never run: `<` ends no element in it."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{html(name)}">{text}</script>')


def write_page(path: Path, title: str, *content: object, scripts: Sequence[str] = ()) -> None:
    """Write a whole page, or leave what was there; `scripts` are files beside this one that it runs, too."""
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
        tag("footer", f"Written by dfkd {__version__}. This file is complete in itself: it loads nothing."),
    )
    write_text(path, f"<!doctype html>\n{tag('html', head, body, lang='en')}\n")


def _resource(name: str) -> Html:
    return Html((resources.files("dfkd.report") / name).read_text(encoding="utf-8"))


def _when() -> str:
    """When the page was written, and by which version."""
    return f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}, dfkd {__version__}"


def _header(name: object, scope: str) -> Html:
    """A header cell. One with a word that would make its column too wide may be broken anywhere."""
    words = "" if isinstance(name, Html) else str(name)
    is_long = max(map(len, words.split()), default=0) > LONG
    return tag("th", name, scope=scope, class_="long" if is_long else None)


def _is_cell(value: object) -> bool:
    return isinstance(value, Html) and value.startswith("<td")
