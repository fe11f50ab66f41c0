import types
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dfkd.models.load_weights import load_weights
from dfkd.models.weights import read_state_dict
from dfkd.system.errors import RequestError


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def assert_same(module: nn.Module, other: nn.Module) -> None:
    for (name, value), (name_, value_) in zip(module.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == name_
        assert torch.equal(value, value_), name


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "net.", "_orig_mod.module."])
def test_loads_a_state_dict_wherever_a_checkpoint_keeps_it(tmp_path: Path, suffix: str, key: str | None, prefix: str):
    trained, path = network(), tmp_path / f"weights{suffix}"
    state = {prefix + name: value for name, value in trained.state_dict().items()}
    torch.save(state if key is None else {"epoch": 3, key: state}, path)
    fresh = network()
    load_weights(fresh, path)
    assert_same(fresh, trained)


def test_loads_safetensors(tmp_path: Path):
    trained, fresh = network(), network()
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    load_weights(fresh, tmp_path / "weights.safetensors")
    assert_same(fresh, trained)


def test_keeps_a_prefix_that_the_modules_own_keys_have(tmp_path: Path):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

    trained, fresh = Wrapped(), Wrapped()
    torch.save({f"module.{name}": value for name, value in trained.state_dict().items()}, tmp_path / "w.pt")
    load_weights(fresh, tmp_path / "w.pt")
    assert_same(fresh, trained)


def test_old_checkpoints_lack_batch_norms_counter(tmp_path: Path):
    trained, fresh = network(), network()
    state = {name: value for name, value in trained.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "w.pt")
    load_weights(fresh, tmp_path / "w.pt")
    assert_same(fresh, trained)


def test_a_mismatch_names_missing_unexpected_and_misshaped_keys(tmp_path: Path):
    state = network().state_dict()
    state["3.weight"] = torch.zeros(7, 16)
    state["head"] = state.pop("0.bias")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(RequestError) as caught:
        load_weights(network(), tmp_path / "w.pt")
    message = str(caught.value)
    assert "1 missing (0.bias)" in message
    assert "1 unexpected (head)" in message
    assert "1 mis-shaped (3.weight [7, 16] for [5, 16])" in message
    assert "\n" not in message


def test_of_many_keys_the_first_few_are_named(tmp_path: Path):
    torch.save({"other": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"8 missing \(0.weight, 0.bias, 1.weight, ...\); 1 unexpected"):
        load_weights(network(), tmp_path / "w.pt")


def test_pickled_objects_are_refused_and_never_run(tmp_path: Path):
    torch.save(network(), tmp_path / "module.pt")
    with pytest.raises(
        RequestError, match=r"pickled Python objects \(torch.nn.*\).*save model.state_dict\(\).*safetens"
    ):
        read_state_dict(tmp_path / "module.pt")
    torch.save({"args": types.SimpleNamespace(lr=1), "state_dict": network().state_dict()}, tmp_path / "args.pt")
    with pytest.raises(RequestError, match=r"SimpleNamespace"):
        read_state_dict(tmp_path / "args.pt")


def test_of_a_torchscript_file_torchs_advice_to_load_it_without_protection_is_not_repeated(tmp_path: Path):
    class Script(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; such files will be around for long
        torch.jit.save(torch.jit.script(Script()), tmp_path / "script.pt")
        with pytest.raises(RequestError, match="hold a TorchScript program: save model") as refused:
            read_state_dict(tmp_path / "script.pt")
    assert "weights_only" not in str(refused.value)


def test_a_tensor_that_repeats_one_number_a_billion_times_is_refused(tmp_path: Path):
    torch.save({"w": torch.zeros(1).expand(10**9, 64)}, tmp_path / "w.pt")
    assert (tmp_path / "w.pt").stat().st_size < 10_000
    with pytest.raises(RequestError, match=r"claim more numbers than they hold \(w\)"):
        read_state_dict(tmp_path / "w.pt")


def test_a_missing_file_is_named_with_its_nearest_sibling(tmp_path: Path):
    torch.save(network().state_dict(), tmp_path / "teacher20.pth")
    (tmp_path / "teacher21.txt").touch()
    with pytest.raises(RequestError, match=r"no file '.*teacher21.pth'; did you mean 'teacher20.pth'\?"):
        read_state_dict(tmp_path / "teacher21.pth")
    with pytest.raises(RequestError, match=r"nor a folder '.*nowhere'"):
        read_state_dict(tmp_path / "nowhere" / "teacher.pth")


@pytest.mark.parametrize("name", ["empty.pt", "noise.pth", "cut.pt", "noise.safetensors"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, name: str):
    torch.save(network().state_dict(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / name).write_bytes({"empty": b"", "noise": b"\x93noise" * 50, "cut": whole[:700]}[name.split(".")[0]])
    with pytest.raises(RequestError, match=f"{name}' cannot be read"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "hold a Tensor, not a state dict"),
        ({"best": 0.9, "epoch": 3}, r"other things than tensors \(best, epoch\)"),
        ({"state_dict": {}}, "hold no tensors"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object, message: str):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=message):
        read_state_dict(tmp_path / "w.pt")


def test_other_kinds_of_files_are_refused(tmp_path: Path):
    with pytest.raises(RequestError, match=r"not one of .pt, .pth, .th, .safetensors"):
        read_state_dict(tmp_path / "weights.onnx")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(RequestError, match="is a folder"):
        read_state_dict(tmp_path / "folder.pt")
