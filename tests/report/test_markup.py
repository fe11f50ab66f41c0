import base64
import hashlib
import json
import re

import pytest

from dfkd.report.markup import Html, data, html, page_path, table, tag, write_page
from dfkd.system.errors import RequestError
from dfkd.system.text import aligned


def test_text_is_escaped_once_and_markup_is_not() -> None:
    inner = tag("b", '<i> & "q"', title='a"b')
    assert inner == '<b title="a&quot;b">&lt;i&gt; &amp; &quot;q&quot;</b>'
    assert tag("p", inner, " <") == f"<p>{inner} &lt;</p>"


def test_attribute_names_and_void_elements() -> None:
    assert tag("img", class_="x", aria_label="y", title=None) == '<img class="x" aria-label="y">'


def test_home_folder_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert html("at /home/somebody/run") == "at ~/run"


def test_table_has_headers_for_rows_and_columns() -> None:
    made = table("words", ["a", "b"], [["<x>", 1], ["y", tag("td", "own", class_="bar")]])
    assert '<th scope="col">b</th>' in made
    assert '<th scope="row">&lt;x&gt;</th><td>1</td>' in made
    assert '<th scope="row">y</th><td class="bar">own</td></tr>' in made


def test_page_is_complete_and_loads_nothing(tmp_path) -> None:
    write_page(tmp_path / "a.html", "<T>", tag("p", "x"))
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert text.startswith('<!doctype html>\n<html lang="en">')
    assert "<title>&lt;T&gt;</title>" in text and "<h1>&lt;T&gt;</h1>" in text and "<main><p>x</p></main>" in text
    assert "prefers-color-scheme: dark" in text and "default-src" in text
    assert "http://" not in text and "https://" not in text
    code = text.partition("<script>")[2].partition("</script>")[0]
    hashed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert text.count("<script") == 1 and f"script-src &#x27;sha256-{hashed}&#x27;" in text
    assert isinstance(tag("p"), Html)


def test_data__ends_no_element_and_is_read_back() -> None:
    values = {"a": "</script><script>alert(1)", "n": [1, None]}
    made = data("x", values)
    assert made.count("<") == 2
    assert json.loads(re.search(r">(.*)<", made)[1]) == values


@pytest.mark.parametrize("out", ["report.csv", "report", "folder.html"])
def test_page_path_wants_a_html_file(tmp_path, out: str) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(RequestError, match=r"give FILE\.html"):
        page_path(str(tmp_path / out))


def test_aligned_columns() -> None:
    assert aligned(["n", "v"], [["long", "1"], ["s", "1,000"]]) == "n         v\nlong      1\ns     1,000"
    assert aligned(["n", "v"], [["a", "b"]], left=(0, 1)) == "n  v\na  b"
