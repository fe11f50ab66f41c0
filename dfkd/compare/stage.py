"""`dfkd compare`: finished runs -> a table on the terminal, a CSV and a page."""

from dfkd.compare import page
from dfkd.compare.collect import collect
from dfkd.compare.table import csv_text, reading, terminal_table, warnings
from dfkd.config import CompareConfig
from dfkd.console import say
from dfkd.files import write_text
from dfkd.overwrite import check_output
from dfkd.pages import page_path
from dfkd.text import visible


def run(config: CompareConfig) -> None:
    """Compare as `config` says. Raises: RequestError for a wrong `--out` or runs that cannot be put side by side."""
    path = page_path(config.out)
    for written in (path, path.with_suffix(".csv")):
        check_output(str(written), "--out", config.runs)
    rows = collect(config.runs)
    print(terminal_table(rows))
    print(visible(reading(rows)))
    for warning in warnings(rows):
        print(visible(f"warning: {warning}"))
    write_text(path.with_suffix(".csv"), csv_text(rows))
    page.write(path, rows)
    say(f"wrote {path} and {path.with_suffix('.csv')}")
