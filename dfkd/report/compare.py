"""`dfkd compare`: finished runs as a table on the terminal, a CSV file and a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dfkd.config import CompareConfig, ExplainConfig
from dfkd.formats.overwrite import check_output
from dfkd.report import compare_page
from dfkd.report.answers import Explanation
from dfkd.report.collect import Row, collect
from dfkd.report.markup import page_path
from dfkd.report.table import csv_text, reading, terminal_table, warnings
from dfkd.system.console import answer, answer_width, say
from dfkd.system.errors import RequestError
from dfkd.system.files import write_text
from dfkd.system.text import visible

EXPLAINED = 8
"""Number of rows, from the best, whose disagreements are shown."""


def run(config: CompareConfig, failed: Mapping[str, str] | None = None) -> Path:
    """Compare runs as `config` says and return the path of the page.

    `failed` maps the names of runs without a result to the reasons. Raises: RequestError for a wrong `--out`, or for
    runs that cannot be compared.
    """
    path = page_path(config.out)
    for written in (path, path.with_suffix(".csv")):
        check_output(str(written), "--out", config.runs)
    rows = collect(config.runs)
    answer(terminal_table(rows, answer_width()))
    answer(visible(reading(rows)))
    missing = [f"{name} failed and is not in the table: {why}" for name, why in (failed or {}).items()]
    found = [*missing, *warnings(rows)]
    for warning in found:
        answer(visible(f"warning: {warning}"))
    answers = _explained(rows, config.disagreements)
    write_text(path.with_suffix(".csv"), csv_text(rows))
    compare_page.write(path, rows, found, answers)
    say(f"wrote {path} and {path.with_suffix('.csv')}")
    return path


def _explained(rows: Sequence[Row], count: int) -> dict[str, Explanation]:
    """Compare the predictions of the best rows' first seeds and their teachers on the test images of each run."""
    if not count:
        return {}
    from dfkd.report.explanation import explained  # imports torch, and a comparison of results alone needs no network

    found = {}
    for row in rows[:EXPLAINED]:
        try:
            found[row.name], *_ = explained(ExplainConfig(model=row.runs[0].folder, out="", count=count))
        except RequestError as error:
            say(f"note: the disagreements of {row.name} are left out: {error}")
    return found
