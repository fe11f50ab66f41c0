"""Which images stay on a GPU; there is none here, so that its memory and the pixels' place are stood in for."""

from types import SimpleNamespace

import pytest
import torch

from dfkd.config import DistillConfig
from dfkd.formats.manifest import ImageShape
from dfkd.formats.shards import Shards
from dfkd.system.device import Place
from dfkd.training import selections
from dfkd.training.stored import Resident


class Selection(Shards):
    """Stands for an opened selection of images of 4x4 pixels in 3 channels: 48 bytes each."""

    def __init__(self, count):
        self.count, self.encoded, self.manifest = count, False, SimpleNamespace(image=ImageShape(False, 4, 3))

    def __len__(self):
        return self.count


@pytest.mark.parametrize(
    ("device", "free", "weights", "kept"),
    [
        ("cuda", 2 * 48 * 30, (), [30]),  # half of what is free, for all selections together
        ("cuda", 2 * 48 * 30 - 2, (), []),
        ("cuda", 2 * 48 * 25, (1.0, 1.0), [20]),  # the first has room, and leaves too little for the second
        ("cuda", 2 * 48 * 30, (1.0, 1.0), [20, 10]),
        ("cpu", 10**9, (), []),
    ],
)
def test_images_stay_on_a_gpu_that_has_the_room(device, free, weights, kept, monkeypatch):
    made = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))

    class OnGpu(Resident):
        def __init__(self, images, size, channels, device):
            made.append((images, device.type))

    monkeypatch.setattr(selections, "Resident", OnGpu)
    config = DistillConfig(teacher="t", student="s", samples=("a", "b"), out="o", weights=weights)
    place = Place(torch.device(device), torch.float32)
    assert len(selections.stored_images(config, [Selection(20), Selection(10)], place)) == (2 if weights else 1)
    assert made == [(images, "cuda") for images in kept]
