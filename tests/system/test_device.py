import json
import platform
import subprocess
import sys

import pytest
import torch

from dfkd.system import device
from dfkd.system.device import bf16_speed, resolve_place
from dfkd.system.errors import RequestError


def test_precision_and_device():
    assert resolve_place("cpu", "fp32").dtype == torch.float32
    place = resolve_place("cpu", "bf16")
    assert place.describe() == {"device": "cpu", "precision": "bfloat16"}
    with place.autocast():
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
    with resolve_place("cpu", "fp32").autocast():
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("pays", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_resolve_place__is_in_bfloat16_where_it_pays(monkeypatch, pays, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "_multiplies_bf16", lambda device: True)
    monkeypatch.setattr(device, "_bf16_pays", lambda: pays)
    assert resolve_place("auto", "auto").dtype == expected
    assert resolve_place("cpu", "bf16").dtype == torch.bfloat16, "whoever names it gets it"


def test_a_gpu_computes_float32_in_full_and_the_same_again(monkeypatch):
    """There is none here: what is asked of cuDNN before anything is computed."""
    for name, before in (("allow_tf32", True), ("deterministic", False)):
        monkeypatch.setattr(torch.backends.cudnn, name, before)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    assert resolve_place("cuda", "fp32").dtype == torch.float32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic) == (False, True)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "meta", "mps", "cpu:x"])
def test_a_device_that_is_not_here_is_named(device):
    with pytest.raises(RequestError, match="--device"):
        resolve_place(device, "auto")


@pytest.fixture
def forget():
    """Makes this process forget what it knows of the machine, before and after the test: as in another process."""
    device._bf16_pays.cache_clear()
    yield device._bf16_pays.cache_clear
    device._bf16_pays.cache_clear()


def test_bf16_speed__is_the_ratio_of_the_best_rounds_and_draws_nothing(monkeypatch):
    """Times stand in for those of this machine: of bfloat16 and of float32, round by round."""
    clock, took = [0.0], iter([9.0, 9.0, 2.0, 8.0, 4.0, 6.0])
    conv, seen = torch.nn.functional.conv2d, []

    def timed(images, *arguments, **options):
        clock[0] += next(took)
        answer = conv(images[:1, :, :4, :4], *arguments, **options)
        seen.append(answer.dtype)
        return answer

    monkeypatch.setattr(torch.nn.functional, "conv2d", timed)
    monkeypatch.setattr(device.time, "thread_time", lambda: clock[0])
    before = torch.get_rng_state()
    assert bf16_speed(rounds=2) == 6 / 2
    assert seen == [torch.bfloat16, torch.float32] * 3
    assert torch.equal(torch.get_rng_state(), before)


def test_bf16_speed__measures_this_machine():
    assert 0.05 < bf16_speed(rounds=1) < 50


@pytest.mark.parametrize(("found", "expected"), [(2.0, torch.bfloat16), (0.5, torch.float32)])
def test_a_machine_keeps_the_precision_that_the_probe_found(found, expected, forget, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path))
    monkeypatch.setattr(device, "_multiplies_bf16", lambda device: True)
    monkeypatch.setattr(device, "bf16_speed", lambda: found)
    assert resolve_place("cpu", "auto").dtype == expected
    assert f"{found:g} times" in capfd.readouterr().err
    monkeypatch.setattr(device, "bf16_speed", lambda: 1 / found)  # another finding, as on a busy day
    forget()
    assert resolve_place("cpu", "auto").dtype == expected
    assert capfd.readouterr().err == ""
    (file,) = tmp_path.iterdir()
    assert list(json.loads(file.read_text()).values()) == [found]
    for damaged in ("{", "[]", '{"a": []}'):  # it is measured anew
        file.write_text(damaged)
        forget()
        assert resolve_place("cpu", "auto").dtype != expected


def test_without_the_instructions_nothing_is_probed(forget, tmp_path, monkeypatch):
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path))
    monkeypatch.setattr(device, "_multiplies_bf16", lambda device: False)
    assert resolve_place("cpu", "auto").dtype == torch.float32
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_a_layer_gets_the_memory_that_another_has_freed():
    # in a process of its own, with a block that glibc would else map anew, and so fault in page by page, every time
    program = """
import resource, torch
from dfkd.system.device import resolve_place
resolve_place("cpu", "fp32")
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    (torch.ones(12 * 2**20) + 1).sum()
before = faults()
for _ in range(20):
    (torch.ones(12 * 2**20) + 1).sum()
print(faults() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000  # twenty times two blocks of 48 MiB have 491,520 pages
