"""A selection's manifest, its last file: what makes it complete, what it holds, and everything that decided it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfkd.data.images.filter import read_filter, read_scores
from dfkd.system.checksums import check_fields, entry, sealed, unsealed
from dfkd.system.errors import RequestError
from dfkd.system.files import write_json

FORMAT = 2
"""From 2 on the manifest has a checksum of its own and the size of every file; a selection of format 1 still opens."""
MANIFEST = "manifest.json"
MEND = "; delete the folder and select again"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, the last file of a selection."""
    beside = [
        {"name": name, **entry(folder / name)}
        for name in ("dataset_info.json", "scores.parquet", "state.json")
        if (folder / name).exists()
    ]
    write_json(folder / MANIFEST, sealed({"format": FORMAT, **manifest, "beside": beside}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete selection. Raises: RequestError where there is none that this version reads."""
    path = folder / MANIFEST
    if not path.exists():
        what = "does not exist" if not folder.exists() else f"is no selection: it has no {MANIFEST}"
        raise RequestError(f"{folder} {what}; dfkd select makes one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
        if found in (1, FORMAT):
            manifest = unsealed(manifest)
            _check_manifest(manifest)
    except OSError as error:  # a permission, a server that is away: no reason to delete anything
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise RequestError(f"{path} cannot be read ({what}){MEND}") from None
    if found not in (1, FORMAT):
        raise RequestError(f"{path} has format {found}; this version reads 1 and {FORMAT}")
    return manifest


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raises: KeyError or ValueError for a manifest that is not what its readers rely on."""

    def check(good: bool, what: str) -> None:
        if not good:
            raise ValueError(what)

    image, files = manifest["image"], manifest["files"]
    check(type(image["encoded"]) is bool, "image.encoded is not true or false")
    check(
        _is_count(image["size"], 1) and image["channels"] in (1, 3), "image has no size, or other than 1 or 3 channels"
    )
    check(image.get("bits") is None or image["bits"] in range(8, 17), "image.bits is not 8 to 16")
    check(isinstance(files, list), "files is no list")
    for file in files:
        # a shard lies in the folder: a name that leads out of it could be any file of this machine
        plain = isinstance(file["name"], str) and Path(file["name"]).name == file["name"] not in ("", "..")
        counts = _is_count(file["rows"]) and _is_count(file.get("bytes", 0))
        check(plain and counts and isinstance(file["sha256"], str), "files lists what is no shard")
    kinds: dict[str, type] = {"fingerprint": str, "content": dict, "classes": int}
    check(all(isinstance(manifest[key], kind) for key, kind in kinds.items()), f"{', '.join(kinds)} are of other types")
    threshold, reasons = manifest.get("threshold"), manifest.get("reasons", {})
    number = isinstance(threshold, int | float) and type(threshold) is not bool and abs(threshold) < 2**40
    check(threshold is None or number, "threshold is no number")
    check(threshold is None or _is_count(manifest["admitted"]), "admitted is no number")
    check(isinstance(reasons, dict) and all(map(_is_count, reasons.values())), "reasons are no counts")
    check(isinstance(manifest.get("unreadable", []), list), "unreadable is no list")
    check(isinstance(manifest["content"].get("options", {}), dict), "content.options is no table")
    filter = manifest.get("filter", {})
    check(isinstance(filter, dict), "filter is no table")
    if filter:
        read_scores(filter)
    read_filter(filter, image["channels"])
    left_out = manifest.get("left_out", {})
    tables = isinstance(left_out, dict) and all(isinstance(counts, dict) for counts in left_out.values())
    check(tables and all(_is_count(n) for c in left_out.values() for n in c.values()), "left_out has no counts")
    cost = manifest.get("cost", {})
    check(isinstance(cost, dict) and all(map(_is_count, cost.values())), "cost has no counts")


def check_samples(manifest: Mapping[str, Any], folder: Path) -> None:
    """Refuse a selection whose manifest lacks what learning from it reads, naming the field."""
    wanted: dict[str, tuple[type, ...]] = {"source": (str,), "teacher": (str,), "per_class": (list,)}
    wanted |= {"content.teacher": (dict,), "content.preprocess.normalize": (str,), "content.options.method": (str,)}
    try:
        check_fields(manifest, wanted)
    except ValueError as error:
        raise RequestError(f"{folder / MANIFEST} cannot be read ({error}){MEND}") from None


def _is_count(value: object, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**40
