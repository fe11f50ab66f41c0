"""What the site has other than the pages: a start page from README.md, and no links out of docs/."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Any, config: Any) -> Any:
    """README.md is the start page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=without_links_outside(readme, outside=r"[A-Z]+(\.\w+)?")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Result files and scripts are not part of the site: their links become their names."""
    return without_links_outside(markdown, outside=r"\.\./[^)]*")


def without_links_outside(markdown: str, outside: str) -> str:
    """The text with the words of such links in their place."""
    return re.sub(rf"\[([^\]]+)\]\({outside}\)", r"\1", markdown)
