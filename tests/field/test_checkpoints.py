"""Checkpoints as they are found: other names, other keys, other things beside the weights."""

import argparse
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dfkd.app.cli import main
from dfkd.formats.overwrite import _input
from dfkd.models.load import load_model
from dfkd.models.load_weights import load_weights
from dfkd.models.weights import read_state_dict
from dfkd.system.errors import RequestError


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


@pytest.fixture
def trained():
    return network(1).state_dict()


@pytest.fixture
def loaded(tmp_path, trained):
    """Save something, load it into another network and compare."""

    def check(content, name="w.pt", key=""):
        torch.save(content, tmp_path / name)
        fresh = network(2)
        load_weights(fresh, tmp_path / (name + key))
        for own, value in fresh.state_dict().items():
            assert torch.equal(value, trained[own]), own

    return check


def test_weights__that_are_cut_short_are_called_so(tmp_path, trained):
    torch.save(trained, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RequestError, match=r"cannot be read: the file is cut short or damaged; fetch it again$"):
        load_weights(network(), tmp_path / "w.pt")


def test_weights__of_another_size_come_with_the_names_of_the_options(tmp_path, monkeypatch):
    (tmp_path / "sized.py").write_text(
        "from torch import nn\n"
        "def net(width=4, kinds=5):\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, kinds))\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)).state_dict(), "w.pt")
    with pytest.raises(RequestError, match=r"check its name and options \(width, kinds\)$"):
        load_model("sized.net@w.pt")


@pytest.mark.parametrize("text", ["mobilenet_9", "timm:mobilenet_9@w.pt", "timm.mobilenet_9", "timm/mobilenet_9"])
def test_load_model__says_how_a_network_of_timm_is_named(monkeypatch, text):
    timm = types.SimpleNamespace(is_model=lambda name: name == "mobilenet_9", __spec__="where it is")
    monkeypatch.setitem(sys.modules, "timm", timm)
    with pytest.raises(RequestError, match=r"; timm has it: timm\.create_model:model_name=mobilenet_9$"):
        load_model(text)
    with pytest.raises(RequestError, match=r"mobilenet_8(?!.*timm has it)"):
        load_model(text.replace("9", "8"))


@pytest.mark.parametrize(
    "name", ["model_best.pth.tar", "last.ckpt", "pytorch_model.bin", "weights", "model.safetensors"]
)
def test_weights__are_read_by_their_bytes(loaded, trained, name):
    """Pickles of tensors under any name."""
    loaded({"state_dict": trained, "epoch": 3}, name)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model.pt"])
def test_weights__of_safetensors_are_read_by_their_bytes(tmp_path, trained, name):
    """Safetensors under any name."""
    save_file(trained, tmp_path / name)
    assert read_state_dict(tmp_path / name).keys() == trained.keys()


def test_model__that_is_a_file_of_weights_is_never_imported(tmp_path, monkeypatch):
    """Weights without an architecture beside a module of the same name."""
    monkeypatch.chdir(tmp_path)
    Path("last.py").write_text("open('was-imported', 'w').close()\n")
    torch.save({}, "last.ckpt")
    for text in ("last.ckpt", "./last.ckpt", "last.ckpt#ema", "last.bin", "last.CKPT"):
        with pytest.raises(RequestError, match="names weights without their architecture"):
            load_model(text)
    assert main(["evaluate", "--model", "last.ckpt", "--data", "any.npz"]) == 2
    assert not Path("was-imported").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "a git-lfs pointer; run git lfs pull"),
        (b"\n <!DOCTYPE html><html></html>", "a web page; download the file itself"),
        (b"<html><body>404</body></html>", "a web page"),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.ckpt"])
def test_weights__that_are_something_else_are_called_by_name(tmp_path, name, content, said):
    """What a download leaves in the place of weights."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=rf"{name}' cannot be read: .*{said}"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("key", ["model_state_dict", "weights", "params", "teacher", "ema", "model_ema", "a.b.c"])
def test_weights__are_the_one_dictionary_that_fits(loaded, trained, key, capsys):
    """State dicts under keys of other training scripts, beside an optimizer's state and numbers."""
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    content = trained
    for part in reversed(key.split(".")):
        content = {part: content}
    loaded({"epoch": 3, "optimizer_state_dict": optimizer, "momentum": {"x": torch.ones(1)}, **content})
    assert f"the 9 tensors of '{key}' are taken, which fit the model" in capsys.readouterr().err


def test_weights__of_another_network_give_way_to_those_that_fit(loaded, trained, capsys):
    """A teacher's and a student's weights in one file."""
    loaded({"state_dict": nn.Linear(3, 2).state_dict(), "student": trained})
    assert "'student' are taken" in capsys.readouterr().err


@pytest.mark.parametrize("plain", ["state_dict", "model", "net"])
def test_weights__averaged_beside_plain_ones_are_told_and_taken_by_key(loaded, trained, plain, capsys):
    """EMA weights beside those of the last step."""
    content = {plain: trained, f"{plain}_ema": network(3).state_dict()}
    loaded(content)
    said = capsys.readouterr().err
    assert f"also hold {plain}_ema (averaged weights, if EMA); w.pt#{plain}_ema takes these" in said
    loaded({plain: network(3).state_dict(), f"{plain}_ema": trained}, key=f"#{plain}_ema")


def test_weights__averaged_ones_are_taken_from_within_by_the_text_of_a_model(tmp_path, capsys):
    """EMA weights in a dictionary of their own, as a MODEL names them."""
    plain = load_model("lenet5:num_classes=7").module.state_dict()
    averaged = {name: value + 1 for name, value in plain.items()}
    torch.save({"model": plain, "ema": {"module": averaged}}, tmp_path / "w.pt")
    model = load_model(f"lenet5@{tmp_path}/w.pt#ema.module")
    assert all(torch.equal(value, averaged[name]) for name, value in model.module.state_dict().items())
    assert "note" not in capsys.readouterr().err


def test_overwriting__weights_named_with_a_key_is_refused(tmp_path):
    """An --out that is the file which FILE#KEY names."""
    torch.save({}, tmp_path / "w.pt")
    assert _input(tmp_path / "w.pt", [f"lenet5@{tmp_path}/w.pt#ema"])


def test_weights__a_key_that_is_not_there_is_refused(tmp_path, trained):
    """A misspelled #KEY."""
    torch.save({"model": trained, "model_ema": trained}, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"no dictionary of tensors 'model_emma'; did you mean 'model_ema'"):
        read_state_dict(tmp_path / "w.pt#model_emma")


@pytest.mark.parametrize("extra", ["0.total_ops", "relative_position_index", "3.attn_mask"])
def test_weights__keys_that_the_network_does_not_have_are_left_out_with_a_note(loaded, trained, extra, capsys):
    """What profilers and older versions of a network leave among the weights."""
    loaded({**trained, extra: torch.zeros(1)})
    assert f"1 of 10 tensors are left out, which the model does not have ({extra})" in capsys.readouterr().err
    with pytest.raises(RequestError, match=r"1 missing \(3.bias\); 1 unexpected"):
        loaded({**{k: v for k, v in trained.items() if k != "3.bias"}, extra: torch.zeros(1)})


@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1, milestones=[1, 2], out=Path("runs")),
        np.float64(0.91),
        np.int64(3),
        torch.Size([3]),
        {"best": np.float32(0.5), "flags": [np.bool_(True)]},
    ],
)
def test_weights__beside_settings_and_numbers_are_read(loaded, trained, beside):
    """Checkpoints of torchvision's and timm's own training scripts."""
    loaded({"model": trained, "beside": beside})


def test_weights__of_a_deeper_network_are_refused(tmp_path):
    """All keys of a shallow network among those of a deep one."""
    deep = load_model("cifar_resnet:depth=20").module.state_dict()
    torch.save(deep, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"do not fit the model: \d+ unexpected"):
        load_model(f"cifar_resnet:depth=14@{tmp_path}/w.pt")


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: argparse.Namespace(x=x), lambda x: np.array([x], dtype=object)]
)
@pytest.mark.parametrize("saved", ["torch", "pickle"])
def test_weights__nothing_in_a_file_is_executed(tmp_path, trained, wrap, saved):
    """Code behind the types that are allowed."""
    content = {"model": trained, "x": wrap(Runs(tmp_path / "ran"))}
    if saved == "torch":
        torch.save(content, tmp_path / "w.pt")
    else:
        (tmp_path / "w.pt").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(RequestError):
        read_state_dict(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()
