"""docs/options.md: every option of every command, from its declaration in dfkd/config/stages/.

    python docs/make_options.py

`dfkd COMMAND --help` is made from the same declarations.
"""

import dataclasses
from pathlib import Path

from dfkd.app.arguments import _SECTIONS, _default
from dfkd.config.option import field_hints, options
from dfkd.config.stage_table import STAGES
from dfkd.config.texts import flag, kind_of, metavar

PAGE = Path(__file__).resolve().parent / "options.md"
INTRO = """# Options

Written by `python docs/make_options.py` from the declarations in dfkd/config/stages/; edit those.

`dfkd COMMAND --help` shows the same. Required options come first. With `--quiet` a command prints results and errors
only. [reference.md](reference.md) explains MODEL, DATA and the methods.
"""


def page():
    """The whole page."""
    return "\n".join([INTRO, *(_command(name, stage) for name, stage in STAGES.items())])


def _command(name, stage):
    hints = field_hints(stage.options)
    sections = {"required": [], **{title: [] for title in _SECTIONS.values()}}
    for field in dataclasses.fields(stage.options):
        declared = options(stage.options)[field.name]
        needed = field.default is dataclasses.MISSING
        sections["required" if needed else _SECTIONS[declared.section]].append(
            f"| `{_spelled(field.name, declared, *kind_of(hints[field.name]))}` | {_text(declared.help)}"
            f"{_text(_default(field, declared))} |"
        )
    lines = [f"## dfkd {name}", "", (stage.options.__doc__ or "").strip(), ""]
    for title, rows in sections.items():
        if rows:
            lines += [f"| {title} | |", "| --- | --- |", *rows, ""]
    return "\n".join(lines)


def _spelled(name, declared, kind, several):
    """An option with its value, such as `--seed INT`."""
    if declared.positional:
        return (name.rstrip("s") + " ...").upper() if several else name.upper()
    if kind is bool:
        return f"{flag(name)}, {flag('no_' + name)}"
    return f"{flag(name)} {metavar(kind, declared.reads, declared.help)}{' ...' * several}".replace("|", "\\|")


def _text(words):
    return words.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
