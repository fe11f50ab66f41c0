"""Reader of `hf:REPO[/CONFIG][@REVISION][:SPLIT]`: a data set of the Hub, or a local folder for `load_dataset`."""

from pathlib import Path
from typing import Any, NamedTuple

from dfkd.data.readers.chunks import ArrowChunks
from dfkd.data.readers.table import TableReader
from dfkd.data.readers.table_files import arrow_table
from dfkd.system.errors import RequestError
from dfkd.system.files import user_path

_FORM = "hf:REPO[/CONFIG][@REVISION][:SPLIT]"


class HubName(NamedTuple):
    """Parts of `hf:REPO[/CONFIG][@REVISION][:SPLIT]`. `shown` is the text without a local folder's path."""

    repo: str
    config: str | None
    revision: str | None
    split: str
    shown: str


def open_hub(text: str) -> tuple[str, TableReader]:
    """Return the name for origins, and a reader of the data set's Arrow cache. Code from the Hub is never run.

    Raises: RequestError if the text is malformed or `datasets.load_dataset` fails.
    """
    name = parse_hub(text)
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        dataset = datasets.load_dataset(name.repo, name.config, split=name.split, revision=name.revision)
    except Exception as error:  # network, files and formats raise errors of several libraries
        raise RequestError(f"{text!r} cannot be loaded ({_FORM}): {error}") from error
    # The fingerprint hashes repository, configuration, split, and the data files' revision (their times if local).
    identity: dict[str, Any] = {"format": "hf", "rows": len(dataset), "fingerprint": dataset._fingerprint}
    # folders in which rows may name images: the local folder, or the caches of the Hub
    caches = [datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE]
    follow = [name.repo] if Path(name.repo).is_dir() else caches
    return name.shown, TableReader(name.shown, ArrowChunks(arrow_table(dataset)), identity, follow)


def parse_hub(text: str) -> HubName:
    """Return the parts of `hf:...`. The default split is `train`. Raises: RequestError if the text is malformed."""
    named, colon, split = text.removeprefix("hf:").partition(":")
    split = split or "train"
    folder = user_path(named)
    local = named.startswith(("/", ".", "~")) or folder.is_dir()
    name, at, revision = (named, "", "") if local else named.partition("@")
    parts = name.split("/")
    wrong = not local and (len(parts) > 3 or "" in parts or (at and not revision))
    if not named or (colon and text.endswith(":")) or wrong:
        raise RequestError(f"{text!r} is not {_FORM}, with REPO as owner/name or a single name")
    if not local:
        config = parts[2] if len(parts) == 3 else None
        return HubName("/".join(parts[:2]), config, revision or None, split, f"hf:{named}:{split}")
    if folder.is_dir():
        return HubName(str(folder), None, None, split, f"hf:{folder.resolve().name}:{split}")
    if folder.parent.is_dir():
        shown = f"hf:{folder.parent.resolve().name}/{folder.name}:{split}"
        return HubName(str(folder.parent), folder.name, None, split, shown)
    raise RequestError(f"{text!r}: there is no folder {str(folder)!r}")
