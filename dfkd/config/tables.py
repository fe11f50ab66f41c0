"""Conversion of TOML files, presets and stored requests to configurations, and differences between two requests."""

import dataclasses
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from dfkd.config.option import Checked, check_ranges, field_hints, is_off
from dfkd.config.stage_table import STAGES, Stage
from dfkd.system.console import say
from dfkd.system.errors import RequestError, nearest, reason
from dfkd.system.names import convert
from dfkd.system.portable import expand

Config = TypeVar("Config")


def from_mapping(config: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Return a configuration made from a TOML table. Hyphens in keys count as underscores.

    Raises: RequestError, which begins with `where`, for an unknown key, a wrong type or a missing value.
    """
    checked = check_mapping(config, values, where)
    required = [
        f.name
        for f in dataclasses.fields(config)  # type: ignore[arg-type]
        if f.default is dataclasses.MISSING and f.name not in checked
    ]
    if required:
        raise RequestError(f"{where} lacks {', '.join(required)}")
    return config(**checked)


def check_mapping(config: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a TOML table's entries as checked field values of `config`, with `~` and `$NAME` filled in.

    Raises: RequestError, which begins with `where`, for an unknown key, a wrong type or a value out of range.
    """
    hints = field_hints(config)
    checked = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise RequestError(f"{where} has no option {key!r}{nearest(name, hints)}")
        if name in checked:
            raise RequestError(f"{where} has {name!r} twice, with a hyphen and with an underscore; remove one")
        checked[name] = expand(convert(value, hints[name], f"{where}: {key}"))
    if issubclass(config, Checked):
        try:
            check_ranges(config, checked)
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from None
    return checked


def load_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file as a dictionary. Raises: RequestError if the file cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no TOML, or a number of 5,000 digits
        raise RequestError(f"{path} cannot be read: {reason(error)}") from None


def over_preset(stage: Stage, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's given options over those of the preset that the options name, if any."""
    preset = given.get("preset")
    values = load_preset(preset, stage) if preset else {}
    if preset and not values and not preset.endswith(".toml"):  # a user's preset file may be for other commands
        say(f"note: --preset {preset} changes nothing here: it has nothing for {stage.name}")
    return layered(values, given)


def load_preset(name: str, stage: Stage) -> dict[str, Any]:
    """Return the values of a preset for one stage. The stage's own table overrides entries outside any table.

    Raises: RequestError for an unknown preset, table or key.
    """
    if name.endswith(".toml"):
        tables = load_toml(Path(name))
    else:
        folder = resources.files("dfkd.config") / "presets"
        known = {Path(entry.name).stem: entry for entry in folder.iterdir() if entry.name.endswith(".toml")}
        if name not in known:
            raise RequestError(f"--preset {name!r} is unknown{nearest(name, known)} (a file of your own ends in .toml)")
        tables = tomllib.loads(known[name].read_text(encoding="utf-8"))
    where = f"preset {name}"
    config = stage.options
    stages = {other.name: other.options for other in STAGES.values() if "preset" in field_hints(other.options)}
    stages[stage.name] = config  # scripts pass stages of their own
    values: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            if key not in stages:
                raise RequestError(f"{where} has a table [{key}]{nearest(key, stages)}")
            table = check_mapping(stages[key], value, f"{where} [{key}]")
            values |= table if key == stage.name else {}
        else:  # a shared entry must be an option of at least one stage
            owner = next((c for c in (config, *stages.values()) if key.replace("-", "_") in field_hints(c)), config)
            checked = check_mapping(owner, {key: value}, where)
            values = {**checked, **values} if owner is config else values
    return values


def layered(weaker: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """Return options over weaker ones. A `steps` or `epochs` among the stronger options replaces both weaker ones."""
    lengths = ("steps", "epochs")
    replaced = lengths if any(stronger.get(name) is not None for name in lengths) else ()
    return {name: value for name, value in weaker.items() if name not in replaced} | dict(stronger)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the fields in which two nested requests differ, each as `name (old, now new)`."""
    found = []
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} ({_short(a)}, now {_short(b)})")
    return found


def describe(config: Any) -> str:
    """Return a resolved configuration in one line, without empty values and options that are off."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return " ".join(
        f"{name}={_short(value)}"
        for name, value in values.items()
        if value not in (None, (), "") and value is not False and not is_off(type(config), name, value)
    )


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
