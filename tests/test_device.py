import pytest
import torch

from dfkd.device import resolve_place
from dfkd.errors import RequestError


def test_precision_and_device():
    assert resolve_place("cpu", "fp32").dtype == torch.float32
    place = resolve_place("cpu", "bf16")
    assert place.describe() == {"device": "cpu", "precision": "bfloat16"}
    with place.autocast():
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
    with resolve_place("cpu", "fp32").autocast():
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
    assert resolve_place("auto", "auto").dtype in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_here_is_named(device):
    with pytest.raises(RequestError, match="--device"):
        resolve_place(device, "auto")
