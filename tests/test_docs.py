"""The pages that are made from docstrings and result files are what these make."""

import csv
import importlib
import json
import re
import tomllib
from pathlib import Path

import pytest

import dfkd
from dfkd import generators
from dfkd.app.pipeline_file import read_pipeline
from dfkd.config.option import options
from dfkd.config.stage_table import STAGES
from dfkd.config.tables import load_preset
from dfkd.config.texts import flag
from dfkd.distill import losses
from dfkd.distill.members import OWN
from dfkd.distill.objective import build_objective
from dfkd.generators.build import choose

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def make(monkeypatch):
    """A script of docs/ as a module."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module


@pytest.mark.parametrize(
    ("page", "names"), [("losses", losses.__all__), ("generators", generators.__all__), ("options", []), ("api", [])]
)
def test_page__is_up_to_date(make, page, names):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert text == make(f"make_{page}").page(), f"run: python docs/make_{page}.py"
    for name in map(str.lower, names):
        assert text.count(f"\n## {name}\n") == text.count(f"| [`{name}`](#{name}) |") == 1


@pytest.mark.parametrize("name", sorted({*generators.__all__} - {"AdaptiveDeepInversion"}))
def test_every_generator_has_its_papers_recipe(name):
    values = load_preset(name.lower(), STAGES["distill"])
    chosen = choose(values["source"])
    assert chosen.target is getattr(generators, name)
    assert build_objective(values["loss"]) and values["steps"] >= 10_000


def sentences(text):
    """The sentences of a Markdown text, without code blocks, comments and headings; a list item or a cell is one."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    prose = [line for line in text.splitlines() if not re.match(r" {4}|<!--|#", line)]
    blocks = re.split(r"\n\s*\n|\n(?=- |\d+\. )|\|", "\n".join(prose))
    for block in blocks:
        yield from (sentence for sentence in re.split(r"(?<=[.!?])\s+", block.strip()) if sentence)


def test_sentences__are_split_at_their_ends_and_leave_out_code():
    text = "# A head\n\nOne two\nthree. Four!\n\n    code here\n\n```sh\nmore code\n```\n"
    text += "\n- an item\n- another. One\n  more\n\n| a | b c |"
    found = [sentence.split() for sentence in sentences(f"{text}\n<!-- a comment -->\n")]
    assert [len(words) for words in found] == [3, 1, 3, 2, 2, 1, 2]


def test_readme__is_short_and_needs_nothing_but_the_repository():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130 and "shared" not in text
    assert not [sentence for sentence in sentences(text) if len(sentence.split()) > 25]


def test_readme__counts_the_losses_and_names_the_generators():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"| Losses | {len(losses.__all__)} on" in text
    named = re.search(r"\| Generators \| (.+), and your own \|", text)[1].lower().split(", ")
    assert {*named, "adaptivedeepinversion"} == {name.lower() for name in generators.__all__}


PAGES = [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), *ROOT.glob("benchmarks/*/LOG.md"), *ROOT.glob("tests/*/LOG.md")]


@pytest.mark.parametrize("page", sorted(str(page.relative_to(ROOT)) for page in PAGES))
def test_pages__have_no_sentence_over_40_words(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not [sentence for sentence in sentences(text) if len(sentence.split()) > 40]


def anchor(heading):
    """The anchor of a heading, as GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "benchmarks/*/LOG.md", "tests/*/LOG.md"]
)
def test_links__lead_to_files_and_headings_that_are_there(page):
    for file in ROOT.glob(page):
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", file.read_text(encoding="utf-8")):
            path, _, heading = link.partition("#")
            target = file.parent / path if path else file
            assert target.exists(), f"{file.name}: {link}"
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
            assert not heading or heading in map(anchor, headings), f"{file.name}: {link}"


REPLACED = ("costs time for nothing", "all are off", "surest", "mend", "asked for", "comes to the same", "one's own")
"""Words of older texts that a stranger stumbled over."""


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_words__that_were_replaced_stay_out(page):
    text = (ROOT / page).read_text(encoding="utf-8").lower()
    assert not [word for word in REPLACED if word in text]


def test_words__that_were_replaced_stay_out_of_all_pages():
    replaced = (
        "who teaches whom",
        "seconds say little",
        "unless said",
        " even over classes",
        "gone on with",
        "treated as photo",
    )
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        text = page.read_text(encoding="utf-8").lower()
        assert not [word for word in replaced if word in text], page.name


def test_readme__names_every_reader_of_labels():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "Only `evaluate`, `explain` and `--test` read labels." in text


def test_the_baseline_is_named_with_its_options(make):
    rows = {row.name: row for row in read_pipeline(ROOT / "benchmarks" / "quality" / "accuracy.toml").distillations}
    baseline, (_, name) = next((line, runs[-1]) for line, runs in make("result_tables").SUMMARY.items())
    assert (rows[name].loss, rows[name].init) == (("kd",), "none") and "`--loss kd --init none`" in baseline


def test_help__of_a_shared_option_is_the_same_for_all_commands():
    declared = [options(stage.options) for stage in STAGES.values()]
    assert len({one["precision"].help for one in declared if "precision" in one}) == 1


def test_version__is_the_same_in_every_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert {project["version"], citation[1]} == {dfkd.__version__}


def test_page__lists_the_options_in_which_students_of_one_command_may_differ():
    text = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    listed = re.search(r"\*\*What may differ\*\*: (.+?)\. The", text, re.DOTALL)
    assert set(re.findall(r"`(--[a-z-]+)`", listed[1])) == {flag(name) for name in OWN if name != "out"}


def test_the_results_are_up_to_date(make):
    for file, text in make("make_results").pages().items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name}: run python docs/make_results.py"


def test_the_rows_of_accuracy_are_what_their_names_say_and_its_results_are_of_rows(monkeypatch):
    quality = ROOT / "benchmarks" / "quality"
    for name in ("DFKD_DATA", "DFKD_TEACHERS"):
        monkeypatch.setenv(name, "/there")
    pipeline = read_pipeline(quality / "accuracy.toml")
    for row in pipeline.distillations:
        words = row.name.split("-")
        assert row.steps == int(words[-1])
        assert row.init == ("teacher" if "init" in words else "none")
        assert (row.crop_area < 1) == bool({"area", "wider"} & {*words})
        assert (row.loss == ("kd",)) == ("kd" in words)
        assert any(loss.startswith("ofd") for loss in row.loss) == ("ofd" in words)
        assert Path(row.samples[0]).name.removesuffix("-seed0") in row.name or "dfnd" in words
    kept = [json.loads(file.read_text()) | {"file": file} for file in (quality / "results").glob("*.json")]
    kept = [about for about in kept if "accuracy.toml" in about.get("command", "")]
    assert kept
    for about in kept:
        rows = about["command"].partition("--only ")[2].split()
        lines = about["file"].with_suffix(".csv").read_text().splitlines()
        assert {line["name"] for line in csv.DictReader(lines)} == {*rows}
        assert pipeline.part(rows).distillations


def test_a_table_follows_its_result_files(make, tmp_path, monkeypatch):
    results = make("make_results")
    for module in (results, make("make_losses")):
        monkeypatch.setattr(module, "QUALITY", tmp_path)
    head = "name,seed,folder,top1,agreement,teacher_top1,test_images,steps,images_seen,teacher_forwards,seconds"
    for name, lines in {"a": ["x,0,f,0.8", "x,1,f,0.9", "y,0,f,0.7"], "b": ["z,0,f,0.75", "x,2,f,0.85"]}.items():
        rest = ",0.5,0.95,1000,100,12800,12800,4.0,selection,1234"
        text = "\n".join([f"{head},source,student_parameters", *(line + rest for line in lines)])
        (tmp_path / f"{name}.csv").write_text(text)
        measured = {"command": f"make {name}", "date": "2026-11-22", "hardware": "H", "threads": 2, "torch": "2"}
        (tmp_path / f"{name}.json").write_text(json.dumps(measured))
    made = results.table("what", ["a", "b", "c"], {"x": "the first", "z": "other"})
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in made.splitlines()[2:5]]
    # x is in both files: the deviation of 80, 90 and 85 is sqrt(25) = 5; the teacher's 95 less 85, 75 and 70
    assert cells == [
        ["`x`", "the first", "3", "85.00 ± 5.00", "50.00 ± 0.00", "-10.00", "100", "4"],
        ["`z`", "other", "1", "75.00", "50.00", "-20.00", "100", "4"],
        ["`y`", "", "1", "70.00", "50.00", "-25.00", "100", "4"],
    ]
    assert made.splitlines()[-2:] == [
        "- [b.csv](../benchmarks/quality/results/b.csv): `make b`; H, 2 threads, torch 2, 2026-11-22",
        "- [c.csv](../benchmarks/quality/results/c.csv): not measured yet",
    ]
    assert results.table("what", ["c"]) == "Not measured yet (c): what."


def test_a_curve_has_the_points_that_were_measured(make, tmp_path, monkeypatch):
    results = make("make_results")
    for module in (results, make("make_losses")):
        monkeypatch.setattr(module, "QUALITY", tmp_path)
    head = "name,seed,folder,top1,agreement,teacher_top1,test_images,steps,images_seen,teacher_forwards,seconds"
    kept = [("a", "x", 0, 0.5, 100), ("b", "x", 0, 0.75, 1000), ("c", "y", 0, 0.25, 1000), ("d", "y", 1, 0.35, 1000)]
    for name, row, seed, top1, steps in kept:
        text = f"{head},source,student_parameters\n{row},{seed},f,{top1},0.5,0.95,1000,{steps},1,1,4.0,selection,1234\n"
        (tmp_path / f"{name}.csv").write_text(text)
    made = results.curves({"ours": [("a", "x"), ("b", "x"), ("gone", "x")], "theirs": [("c", "y"), ("d", "y")]})
    assert [[cell.strip() for cell in line.split("|")[2:-1]] for line in made.splitlines()] == [
        ["100", "1,000"],
        ["---:", "---:"],
        ["50.00", "75.00"],
        ["", "30.00 (2)"],
    ]
