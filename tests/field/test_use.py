"""Commands as users give them: values that look like options, outputs over inputs, many classes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dfkd.app import cli
from dfkd.app.arguments import parse_arguments
from dfkd.config.stage_table import STAGES
from dfkd.formats.overwrite import check_output
from dfkd.models import cifar_resnet
from dfkd.system.errors import RequestError
from dfkd.system.text import of_classes

NET = "cifar_resnet:depth=8,width=4"


def dfkd(*arguments):
    return cli.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network with 4 classes, and labeled images."""
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    save_file(cifar_resnet(depth=8, width=4, num_classes=4).state_dict(), folder / "t.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.arange(40) % 4)
    return folder


def test_of_classes__is_one_line_of_any_number_of_classes():
    """Figures of 1,000 classes, some of them without images."""
    assert of_classes([0.5, None, 1.0], "x", ".2f") == "0.50 None 1.00"
    assert of_classes([*range(20)], "x").split() == [str(k) for k in range(20)]
    values = [None, None, *(k / 1000 for k in range(998))]
    assert of_classes(values, "FILE", ".3f") == (
        "1,000 classes (2 without images): least 0.000 (class 2), 0.001 (class 3), 0.002 (class 4), 0.003 (class 5), "
        "0.004 (class 6); most 0.997 (class 999), 0.996 (class 998), 0.995 (class 997), 0.994 (class 996), "
        "0.993 (class 995); median 0.498; all are in FILE"
    )
    assert of_classes([None] * 30, "FILE") == "30 classes (30 without images)"


def test_main__summarizes_many_classes(tmp_path, capsys):
    """A teacher of 500 classes, measured and selected with."""
    torch.manual_seed(0)
    save_file(cifar_resnet(depth=8, width=4, num_classes=500).state_dict(), tmp_path / "t.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(600) % 500)
    model, given = f"{NET}@{tmp_path / 't.safetensors'}", ("--image-size", 8, "--normalize", "none")
    json_file = tmp_path / "e.json"
    assert dfkd("evaluate", "--model", model, "--data", tmp_path / "d.npz", "--json", json_file, *given) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("per_class: "))
    assert line.startswith("per_class: 500 classes: least 0.0000 (class ") and len(line) < 400
    assert len(json.loads(json_file.read_text())["per_class"]) == 500
    pool = ("--pool", tmp_path / "d.npz", "--count", 50, "--filter", "none")
    assert dfkd("select", "--teacher", model, *pool, "--out", tmp_path / "s", *given) == 0
    said = capsys.readouterr().err.splitlines()
    line = next(line for line in said if line.startswith("selected by predicted class: "))
    assert "500 classes: least 0 (class 0)" in line and len(line) < 400
    assert max(map(len, said[1:])) < 400


def test_parse_arguments__takes_no_value_for_a_flag():
    """Values that are spelled as an option's name."""
    given = ("--teacher", "t", "--student", "s", "--samples", "d", "--preset", "quick", "--out", "epochs")
    assert parse_arguments(STAGES["distill"], given).steps == 1000


@pytest.mark.parametrize("variable_first", [True, False])
def test_main__stores_no_name_that_another_command_filled_in(place, tmp_path, monkeypatch, variable_first):
    """Two commands in one process, of which one names a folder by a variable."""
    monkeypatch.setenv("PLACE", str(place))
    model = ("--model", f"{NET}@{place / 't.safetensors'}", "--image-size", 32)
    preset = tmp_path / "p.toml"
    preset.write_text('[evaluate]\ndata = "$PLACE/data.npz"\n')
    data = {"variable": ("--preset", preset), "path": ("--data", place / "data.npz")}
    for name in ["variable", "path"] if variable_first else ["path", "variable"]:
        assert dfkd("evaluate", *model, *data[name], "--json", tmp_path / f"{name}.json") == 0
    stored = [json.loads((tmp_path / f"{name}.json").read_text())["config"]["data"] for name in ("variable", "path")]
    assert stored == ["$PLACE/data.npz", str(place / "data.npz")]


@pytest.mark.parametrize("over", ["data.npz", "t.safetensors", "link.npz"])
def test_check_output__refuses_an_input(place, tmp_path, capsys, over):
    """Reports and exports whose file is the data, or the model, or a link to one."""
    for name in ("data.npz", "t.safetensors"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    (tmp_path / "link.npz").symlink_to(tmp_path / "data.npz")
    before = (tmp_path / over).read_bytes()
    model = ("--model", f"{NET}@{tmp_path / 't.safetensors'}", "--image-size", 32)
    assert dfkd("evaluate", *model, "--data", tmp_path / "data.npz", "--json", tmp_path / over) == 2
    assert f"--json {tmp_path / over} would replace the input" in capsys.readouterr().err
    if over == "t.safetensors":
        assert dfkd("export", *model, "--out", tmp_path / over) == 2
    assert (tmp_path / over).read_bytes() == before


def test_check_output__refuses_the_files_of_a_run_and_of_a_selection(tmp_path):
    """Outputs over files that have a checksum, of folders that are no input of the command."""
    for name in ("run/config.toml", "run/metrics.jsonl", "run/checkpoint/state.pt", "s/manifest.json", "s/x.arrow"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    kept = ("run/student.safetensors", "run/result.json", "run/checkpoint/progress.json", "s/state.json", "s/x.arrow")
    for name in kept:
        with pytest.raises(RequestError, match="would replace a file of the"):
            check_output(str(tmp_path / name), "--out", ())
    check_output(str(tmp_path / "run/test.json"), "--json", (str(tmp_path / "run"),))
