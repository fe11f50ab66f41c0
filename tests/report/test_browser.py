"""The pages in Chromium: what their scripts do, and that they say nothing on its console."""

import base64
import hashlib
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfkd.config import CompareConfig
from dfkd.formats.manifest import Manifest
from dfkd.report import explanation_page, explore
from dfkd.report.answers import Answers, Explanation
from dfkd.report.charts import bar
from dfkd.report.compare import run
from dfkd.report.embedding import Embedding
from dfkd.report.knowledge import Knowledge
from dfkd.report.markup import table, write_page
from dfkd.select import methods
from dfkd.select.choose import choose
from dfkd.system.records import parse

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is on the PATH")

Drive = Callable[..., Any]


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    """Open a page, run an expression in it once it has loaded, and return its value; the console has to be empty."""

    def opened(page: Path, expression: str, size: str = "1200,900") -> Any:
        code = (
            'addEventListener("load", () => { const told = document.createElement("pre"); told.id = "told";'
            f"told.textContent = JSON.stringify({expression}); document.body.append(told); }});"
        )
        allowed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        text = page.read_text(encoding="utf-8")
        text = text.replace("; script-src ", f"; script-src 'sha256-{allowed}' ", 1)
        copy = tmp_path / "driven.html"
        copy.write_text(text.replace("</body>", f"<script>{code}</script></body>"), encoding="utf-8")
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={size}")
        done = subprocess.run(
            [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
        assert told, done.stderr[-2000:]
        return json.loads(unescape(told[1]))

    return opened


HOSTILE = '<img src=x onerror=document.title="hacked"> | "kd"'

COMPARED = """(() => {
  const table = document.querySelector("table");
  const names = () => [...table.tBodies[0].rows].map((r) => r.cells[0].textContent);
  const click = (k) => { table.tHead.rows[0].cells[k].querySelector("button").click(); return names(); };
  const seconds = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === "seconds");
  const box = table.parentElement, chart = dfkd.svg(document.querySelector("figure > svg"));
  const markdown = document.querySelector("pre.copied").textContent.split("\\n");
  return { markdown: markdown.slice(0, 2),
    before: names(), down: click(seconds), up: click(seconds), csv: dfkd.csv(table), title: document.title,
    wide: box.scrollWidth - box.clientWidth, page: document.documentElement.scrollWidth - innerWidth,
    images: document.images.length,
    svg: new DOMParser().parseFromString(chart, "image/svg+xml").documentElement.tagName,
    classes: /var\\(/.test(chart), buttons: document.querySelectorAll("button.save").length };
})()"""


def test_compare__tables_sort_and_save_and_names_are_only_text(make_run, drive: Drive, tmp_path: Path) -> None:
    long = "a" * 70
    rows = [(HOSTILE, 0.7, 20.0), ("threshold | kd ofd", 0.8, 300.0), ("=cmd()", 0.6, 4.0), (long, 0.5, 2.0)]
    folders = [make_run(name, s, top1=top1 + s / 100, seconds=sec) for name, top1, sec in rows for s in (0, 1)]
    run(CompareConfig(runs=tuple(folders), out=str(tmp_path / "report.html")))
    found = drive(tmp_path / "report.html", COMPARED)
    assert found["before"] == ["threshold | kd ofd", HOSTILE, "=cmd()", long]
    assert found["down"] == ["threshold | kd ofd", HOSTILE, "=cmd()", long] and found["up"] == found["down"][::-1]
    assert found["title"] == "Comparison of runs" and found["images"] == 0
    assert found["markdown"][0].startswith("| name |") and found["markdown"][1].startswith("| --- |")
    assert found["wide"] <= 0 and found["page"] <= 0  # no column is cut off at 1,200 pixels
    assert "\n'=cmd()," in found["csv"] and f'\n"{HOSTILE.replace(chr(34), chr(34) * 2)}",' in found["csv"]
    assert found["svg"] == "svg" and not found["classes"] and found["buttons"] >= 5


def manifest(count: int, classes: int) -> Manifest:
    table: dict[str, Any] = {
        "fingerprint": "0",
        "teacher": "t",
        "source": "selection",
        "count": count,
        "image": {"encoded": False, "size": 4, "channels": 3},
        "classes": classes,
        "class_names": [f"n{k}" for k in range(classes)],
        "per_class": [0] * classes,
        "threshold": 0.5,
        "admitted": count,
        "reasons": {},
        "unreadable": [],
        "content": {
            "teacher": {"architecture": "a", "weights": "0"},
            "preprocess": {"normalize": "none"},
            "options": {"method": "threshold:gamma=0.4", "balance": "class"},
            "seed": 0,
        },
        "files": [],
        "beside": [],
    }
    return parse(Manifest, table)


def scores(rng: np.random.Generator, rows: int, classes: int) -> explore.ScoredPool:
    # ties, and classes of very different sizes
    confidence = rng.random(rows).astype(np.float32).round(2).clip(0.01)
    distance = rng.random(rows).astype(np.float32)
    prediction = (classes * rng.random(rows) ** 3).astype(np.int64)
    return explore.ScoredPool(
        confidence, (1 - confidence) ** 2, prediction, np.zeros(rows, np.int64), np.arange(rows), rows, distance
    )


def test_explorer__picks_what_select_picks(drive: Drive, tmp_path: Path, rng: np.random.Generator) -> None:
    pool = scores(rng, 700, 6)
    path = tmp_path / "page.html"
    corners = np.stack([np.arange(700) / 699, np.arange(700) / 699], axis=1).astype(np.float32)
    corners[5] = np.nan
    embedded = Embedding(corners, 0.5, "features")
    section = explore.explorer(pool, manifest(90, 6), np.array([], np.int64), lambda rows: embedded)
    write_page(path, "t", section, scripts=("explore.js",))
    cases = [
        (method, gamma, count, balance)
        for method, gamma in (("threshold", 0.4), ("threshold", 1.0), ("statistics", 0.5), ("confidence", 0.5))
        for count, balance in itertools.product((1, 90, 250), ("none", "class"))
    ]
    options = [dict(zip(("method", "gamma", "count", "balance"), case, strict=True)) for case in cases]
    found = drive(
        path,
        """(() => {
          const given = JSON.parse(document.getElementById("pool").textContent), pool = { ...given };
          const types = { confidence: Float32Array, distance: Float32Array, prediction: Uint32Array };
          for (const [name, type] of Object.entries(types)) pool[name] = explore.column(given[name], type);
          const picks = CASES.map((options) => [...explore.choose(pool, options).picked].sort((a, b) => a - b));
          const text = (id) => document.getElementById(id).textContent;
          const form = document.querySelector(".explore form");
          const before = text("explore-says"), command = text("explore-command");
          form.elements.gamma.value = 0.1; form.elements.count.value = 700;
          form.dispatchEvent(new Event("input", { bubbles: true }));
          const few = text("explore-says"), admitted = text("explore-command");
          const options = [...document.querySelectorAll("#explore-command span")].map((one) => one.textContent);
          form.elements.count.value = 50; form.elements.method.value = "statistics";
          form.dispatchEvent(new Event("input", { bubbles: true }));
          form.elements.up.value = "embedding";
          form.dispatchEvent(new Event("input", { bubbles: true }));
          const plane = document.getElementById("plane"), box = plane.getBoundingClientRect();
          const dots = [[30, box.height - 24], [box.width - 6, 6]].map(([x, y]) => {
            plane.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + x, clientY: box.top + y }));
            return text("explore-dot").split(", confidence")[0];
          });
          return { picks, dots, before, few, admitted, options, command,
            after: text("explore-says"), then: text("explore-command"),
            bars: [...document.querySelectorAll("#explore-classes li")].map((one) => one.title.split(":")[0]),
            hidden: document.querySelector(".explore").hidden };
        })()""".replace("CASES", json.dumps(options)),
    )
    named = {"threshold": methods.threshold, "statistics": methods.statistics, "confidence": methods.confidence}
    everything = methods.ImageScores(pool.confidence, pool.entropy, pool.prediction, pool.distance)
    for (method, gamma, count, balance), picks in zip(cases, found["picks"], strict=True):
        more = {"gamma": gamma} if method == "threshold" else {}
        choice = choose(
            everything,
            np.ones(700, bool),
            lambda scores, rng, method=method, more=more: named[method](scores, rng, **more),
            count=count,
            seed=0,
            features=lambda rows: pytest.fail("features"),
            balance=balance,
            reach=1.5 if method == "statistics" else None,
        )
        assert picks == choice.indices.tolist(), (method, gamma, count, balance)
    assert found["before"].startswith("90 picked of ") and found["after"].startswith("50 picked of 700 admitted")
    assert found["command"].endswith("--method threshold --gamma 0.4 --count 90 --balance class --out selection")
    assert found["few"].startswith("70 picked of 70 admitted") and "--gamma 0.1 --count 70 " in found["admitted"]
    assert found["options"] == re.findall(r"--\S+", found["admitted"])
    assert "--method statistics --count 50 --balance class" in found["then"]
    words = [f"class {k} n{k}" for k in range(6)]
    assert found["bars"] == words and found["hidden"] is False
    assert found["dots"] == [f"Image {i}: {words[pool.prediction[i]]}" for i in (0, 699)]


@pytest.mark.slow
def test_explorer__of_100_000_scores_opens_in_three_seconds(drive: Drive, tmp_path: Path, rng) -> None:
    pool = scores(rng, 100_000, 100)
    path = tmp_path / "page.html"
    write_page(path, "t", explore.explorer(pool, manifest(9000, 100), np.array([], np.int64)), scripts=("explore.js",))
    assert path.stat().st_size < 5e6
    milliseconds = drive(path, "performance.now()")
    assert milliseconds < 3000


def test_page__has_no_cut_off_columns_on_a_phone(make_run, drive: Drive, tmp_path: Path) -> None:
    folders = [make_run(name, top1=0.5, seconds=sec) for name, sec in (("a" * 60, 1.0), ("b", 2.0))]
    run(CompareConfig(runs=tuple(folders), out=str(tmp_path / "report.html")))
    over = drive(tmp_path / "report.html", "document.documentElement.scrollWidth - innerWidth", "500,800")
    assert over <= 0


BROKEN = """(() => {
  const broken = [], lines = [];
  for (const cell of document.querySelectorAll("th[scope=row]")) {
    const text = cell.firstChild, range = document.createRange();
    for (const word of text.data.matchAll(/\\S+/g)) {
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      if (word[0].length <= 18 && range.getClientRects().length > 1) broken.push(word[0]);
    }
    range.selectNodeContents(cell);
    lines.push(range.getClientRects().length);
  }
  const ends = [...document.querySelectorAll("caption")].map((c) => c.getBoundingClientRect().right - innerWidth);
  return { broken, lines: Math.max(...lines), wide: document.documentElement.scrollWidth - innerWidth,
    cut: Math.max(...ends) };
})()"""
"""Words of row headers that are broken, the largest number of lines of a row header, and how much is cut off."""


@pytest.mark.parametrize(("size", "lines"), [("500,900", 9), ("1200,900", 1)])
def test_tables__break_row_headers_between_words(drive: Drive, tmp_path: Path, size: str, lines: int) -> None:
    names = ["selected, confidence", "2 Äpfel & Birnen", "threshold | kd ofd"]
    numbers = [[name, *["1,234.5"] * 7] for name in names]
    bars = [[name, bar(0.5), "3"] for name in names]
    head = ["name", *"abcdefg"]
    write_page(tmp_path / "a.html", "T", table("numbers " * 20, head, numbers), table("bars", head[:3], bars))
    found = drive(tmp_path / "a.html", BROKEN, size)
    assert not found["broken"] and found["wide"] <= 0 and found["cut"] < 0 and found["lines"] <= lines
    many = [[" ".join(["a long name"] * 6), bar(0.5), "3"], ["a" * 60, bar(0.5), "3"]]
    write_page(tmp_path / "b.html", "T", table("bars", head[:3], many))
    found = drive(tmp_path / "b.html", BROKEN, size)
    assert not found["broken"] and found["wide"] <= 0 and 1 < found["lines"] < 12


def test_explain__tables_sort_and_class_names_are_only_text(drive: Drive, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, names = 60, (HOSTILE, "one", "=two()")
    student, teacher, labels = (rng.integers(0, 3, n) for _ in range(3))
    sure = rng.uniform(0.4, 1, n)
    answers = Answers(student, teacher, sure, sure, rng.uniform(0, 2, n), labels)
    shown = answers.disagreements()[:6]
    images = rng.integers(0, 256, (len(shown), 8, 8, 3), dtype=np.uint8)
    cams = (rng.uniform(0, 1, (len(shown), 8, 8)), None)
    knowledge = Knowledge(images[:2], {who: rng.normal(size=(2, 4, 4)) for who in ("student", "teacher")}, None)
    origins = [HOSTILE] * len(shown)
    found = Explanation("run", HOSTILE, "data", answers, names, origins, images, True, cams)
    explanation_page.write(tmp_path / "page.html", found, knowledge)
    looked = drive(
        tmp_path / "page.html",
        """(() => {
          const table = document.querySelector("table");
          const lost = () => [...table.tBodies[0].rows].map((r) => parseFloat(r.cells[4].textContent));
          const before = lost();
          table.tHead.rows[0].cells[4].querySelector("button").click();
          return { before, after: lost(), title: document.title, images: document.images.length,
            broken: [...document.images].filter((i) => i.complete && !i.naturalWidth).length,
            wide: document.documentElement.scrollWidth - innerWidth };
        })()""",
        "400,900",
    )
    assert looked["before"] == sorted(looked["before"], reverse=True)
    assert looked["after"] in (sorted(looked["before"]), sorted(looked["before"], reverse=True))
    assert looked["title"] == "run and its teacher"
    assert looked["images"] == 2 * len(shown) + 3 * 2
    assert looked["broken"] == 0
    assert looked["wide"] <= 0
