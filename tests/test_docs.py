"""The pages that are made from docstrings and result files are what these make."""

import importlib.util
from pathlib import Path

from dfkd.distill import losses

DOCS = Path(__file__).resolve().parent.parent / "docs"


def made(script):
    spec = importlib.util.spec_from_file_location(script, DOCS / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.page()


def test_the_losses_page_is_up_to_date():
    page = (DOCS / "losses.md").read_text(encoding="utf-8")
    assert page == made("make_losses"), "run: python docs/make_losses.py"
    for name in losses.__all__:
        assert page.count(f"\n## {name.lower()}\n") == 1
        assert page.count(f"| [`{name.lower()}`](#{name.lower()}) |") == 1
