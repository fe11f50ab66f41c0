"""`--decoder nvjpeg` in the commands, with torchvision's decoder on the CPU in the GPU's place."""

import json
import tomllib

import pytest

from dfkd.data.images import nvjpeg


@pytest.fixture
def decoded(monkeypatch):
    """The numbers of files that are decoded as on a GPU."""
    numbers, real = [], nvjpeg.decode_jpegs
    monkeypatch.setattr(nvjpeg, "_DEVICE", "cpu")
    monkeypatch.setattr(nvjpeg, "decode_jpegs", lambda files, *rest: numbers.append(len(files)) or real(files, *rest))
    return numbers


def test_decoder__of_select_is_part_of_the_manifest_and_of_the_scores(studio, selection, decoded, tmp_path, capsys):
    out = tmp_path / "out"
    assert studio.select(out, "--count", 20, "--decoder", "nvjpeg") == 0
    assert sum(decoded) > 20  # one of them is the check, some are seen by the examination of the teacher
    assert "are cached" not in capsys.readouterr().out
    content, before = (json.loads((one / "manifest.json").read_text())["content"] for one in (out, selection))
    assert content["compute"] == {**before["compute"], "decoder": "nvjpeg"}
    assert studio.select(out, "--count", 20) == 2
    assert "decoder" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "files"), [((), 8), (("--teacher-views", 1), 20)])
def test_decoder__of_distill_is_part_of_the_run(studio, selection, decoded, tmp_path, more, files):
    assert studio.distill(selection, tmp_path / "run", "--init", "none", "--decoder", "nvjpeg", *more) == 0
    assert sum(decoded) >= 1 + files
    record = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert record["content"]["options"]["decoder"] == record["distill"]["decoder"] == "nvjpeg"


def test_decoder__is_refused_without_a_gpu(studio, selection, tmp_path, capsys):
    assert studio.select(tmp_path / "s", "--decoder", "nvjpeg") == 2
    assert studio.distill(selection, tmp_path / "r", "--decoder", "nvjpeg") == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2] for line in said if "--decoder" in line] == [
        "--decoder nvjpeg needs a GPU, and the device is cpu; leave it out"
    ] * 2
