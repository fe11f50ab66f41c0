"""`hf:REPO[/CONFIG][:SPLIT]`: a data set of the Hugging Face Hub, or a local folder that `load_dataset` knows."""

from pathlib import Path
from typing import Any, NamedTuple

from dfkd.data.table import ArrowChunks, TableReader, arrow_table
from dfkd.errors import RequestError


class HubName(NamedTuple):
    """What `hf:REPO[/CONFIG][:SPLIT]` names; `shown` is the same without a local folder's place."""

    repo: str
    config: str | None
    split: str
    shown: str


def open_hub(text: str) -> tuple[str, TableReader]:
    """The name for sources, and a reader of the data set's Arrow cache. Code from the Hub is never run.

    Raises: RequestError where the text is malformed, or `datasets.load_dataset` fails.
    """
    name = parse_hub(text)
    import datasets

    try:
        dataset = datasets.load_dataset(name.repo, name.config, split=name.split)
    except Exception as error:  # network, files and formats, each with its library's own exceptions
        raise RequestError(f"{text!r} cannot be loaded (hf:REPO[/CONFIG][:SPLIT]): {error}") from error
    # The fingerprint hashes repository, configuration, split and the revision (locally: the times) of the data files.
    identity: dict[str, Any] = {"format": "hf", "rows": len(dataset), "fingerprint": dataset._fingerprint}
    return name.shown, TableReader(name.shown, ArrowChunks(arrow_table(dataset)), identity)


def parse_hub(text: str) -> HubName:
    """Take `hf:...` apart; the split is `train` where none is given. Raises: RequestError where it is malformed."""
    place, colon, split = text.removeprefix("hf:").partition(":")
    split = split or "train"
    parts = place.split("/")
    folder = Path(place).expanduser()
    local = place.startswith(("/", ".", "~")) or folder.is_dir()
    if not place or (colon and text.endswith(":")) or (not local and (len(parts) > 3 or "" in parts)):
        raise RequestError(f"{text!r} is not hf:REPO[/CONFIG][:SPLIT], with REPO as owner/name or a single name")
    if not local:
        return HubName("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split, f"hf:{place}:{split}")
    if folder.is_dir():
        return HubName(str(folder), None, split, f"hf:{folder.resolve().name}:{split}")
    if folder.parent.is_dir():
        shown = f"hf:{folder.parent.resolve().name}/{folder.name}:{split}"
        return HubName(str(folder.parent), folder.name, split, shown)
    raise RequestError(f"{text!r}: there is no folder {str(folder)!r}")
