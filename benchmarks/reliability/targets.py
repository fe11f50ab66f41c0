"""Targets of the fuzzer: one function per reader of foreign input.

A target returns for input that is read, and for input that is refused as documented. Any other exception is a finding.
`tests/regressions` runs the fixed findings through the same functions.
"""

import contextlib
import json
import os
from collections.abc import Callable
from unittest.mock import patch

import numpy as np

from benchmarks.reliability.seeds import FOLDER, SIDE, selection
from dfkd.system.errors import RequestError


def image(data: bytes) -> None:
    from dfkd.data.images.decode import decode
    from dfkd.data.readers.reader import Unreadable

    for channels in (1, 3):
        try:
            pixels = decode(data, SIDE, channels).pixels
        except Unreadable:
            return
        assert pixels.shape == (SIDE, SIDE, channels) and pixels.dtype == np.uint8


def _pool(data: bytes, suffix: str) -> None:
    """Read everything that `select` and `evaluate` read of a pool."""
    from dfkd.data import open_pool

    path = FOLDER / f"pool{suffix}"
    path.write_bytes(data)
    try:
        with patch.dict(os.environ, DFKD_CACHE=os.devnull):  # a tar's index must not be kept
            pool = open_pool([str(path)], image_size=SIDE, channels=3, workers=1)
        rows = np.arange(min(len(pool), 64))
        images = pool.images(rows)
        assert images.pixels.shape == (len(rows), SIDE, SIDE, 3)
        assert len(set(pool.origins(rows))) == len(rows) or suffix == ".tar"  # an archive may hold a name twice
        json.dumps(pool.identity)
        pool.files(np.array([i for i in rows if i not in images.problems], np.int64))
        pool.labels()
    except RequestError as error:
        assert "\n" not in str(error)


def tar(data: bytes) -> None:
    _pool(data, ".tar")


def npz(data: bytes) -> None:
    _pool(data, ".npz")


def parquet(data: bytes) -> None:
    _pool(data, ".parquet")


def arrow(data: bytes) -> None:
    _pool(data, ".arrow")


def manifest(data: bytes) -> None:
    """Read a selection with a valid shard and any manifest, whose checksum is right if it can have one."""
    from dfkd.formats.manifest import MANIFEST
    from dfkd.report.contents import read, terminal_text
    from dfkd.system.checksums import sealed

    folder = selection()
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        data = json.dumps(sealed(json.loads(data))).encode()
    (folder / MANIFEST).write_bytes(data)
    try:
        terminal_text(read(folder))
    except RequestError as error:
        assert "\n" not in str(error)


def names(data: bytes) -> None:
    """Parse MODEL, loss, tap, normalization and DATA texts."""
    from dfkd.data.images.normalize import parse_normalize
    from dfkd.data.locate import _brace
    from dfkd.data.readers.hub import parse_hub
    from dfkd.models.features.taps import parse_taps
    from dfkd.system.names import parse

    text = data.decode("utf-8", "surrogateescape").replace("\0", "")  # arguments and TOML hold no null byte
    for read in (
        lambda: parse(text),
        lambda: parse_taps(text.split(" ")),
        lambda: parse_normalize(text, 3),
        lambda: parse_hub("hf:" + text),
        lambda: _brace(text),
    ):
        try:
            read()
        except RequestError as error:
            assert str(error).isprintable()
        except OSError as error:  # a name that is too long: the command reports it with the name
            assert error.filename is not None
    try:
        named = parse(text)
    except RequestError:
        return
    again = parse(str(named))
    assert repr(again) == repr(named), (named, str(named), again)


def toml(data: bytes) -> None:
    """Read a preset and a pipeline."""
    from dfkd.app.pipeline_file import read_pipeline
    from dfkd.config import option, tables
    from dfkd.config.stage_table import STAGES

    path = FOLDER / "file.toml"
    path.write_bytes(data)
    for stage in (STAGES["select"], STAGES["distill"]):
        kind = stage.options
        try:
            values = tables.load_preset(str(path), stage)
            given = {"teacher": "t", "pool": ("p",), "student": "s", "samples": ("s",), "out": "o"}
            hints = option.field_hints(kind)
            tables.describe(kind(**{k: v for k, v in given.items() if k in hints} | values))
        except RequestError as error:
            assert str(error).isprintable()
    try:
        read_pipeline(path)
    except RequestError as error:
        assert str(error).isprintable()


def weights(data: bytes) -> None:
    """Read the same bytes as a pickle of tensors and as safetensors."""
    from dfkd.models.weights import read_state_dict

    for suffix in (".pt", ".safetensors"):
        path = FOLDER / f"weights{suffix}"
        path.write_bytes(data)
        try:
            for value in read_state_dict(path).values():
                value.sum()
        except RequestError as error:
            assert "\n" not in str(error)


def program(data: bytes) -> None:
    """Check the description of a `.pt2` program. An accepted description holds nothing that would be executed."""
    from dfkd.models.program import check_description

    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        check_description(value)
    except RequestError as error:
        assert str(error).isprintable()


TARGETS: dict[str, Callable[[bytes], None]] = {
    f.__name__: f for f in (image, tar, npz, parquet, arrow, manifest, names, toml, weights, program)
}
