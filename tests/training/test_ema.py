import io

import numpy as np
import pytest
import torch
from torch import nn

from dfkd.training.ema import Average


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    return net.to(memory_format=torch.channels_last)


def move(net, step):
    """Change weights and statistics in place, as a step does."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in net.parameters():
            p += torch.randn(p.shape, generator=generator)
    net(torch.randn(8, 1, 6, 6, generator=generator))


def average_of(net, decay):
    return Average(net.state_dict().values(), decay)


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_it_is_the_moving_average_with_a_warmed_up_decay(decay):
    net = network()
    average = average_of(net, decay)
    names = [name for name, value in net.state_dict().items() if value.is_floating_point()]
    expected = {name: net.state_dict()[name].double().numpy() for name in names}
    for step in range(40):
        move(net, step)
        average.update(step)
        d = np.minimum(decay, (1.0 + step) / (10.0 + step))
        expected = {name: d * expected[name] + (1 - d) * net.state_dict()[name].double().numpy() for name in names}
    average.apply()
    assert "1.running_var" in names
    for name in names:
        np.testing.assert_allclose(net.state_dict()[name].numpy(), expected[name], rtol=2e-5, atol=2e-6)
    assert net[1].num_batches_tracked == 40


def test_what_never_changes_keeps_its_bits_and_layouts_stay():
    net = network()
    net[2].requires_grad_(False)
    frozen = torch.full((3,), 0.1)
    before = net[2].weight.clone()
    average = Average([*net.state_dict().values(), frozen], 0.7)
    for step in range(20):
        with torch.no_grad():
            net[0].weight += 1
        average.update(step)
    average.apply()
    assert torch.equal(net[2].weight, before) and torch.equal(frozen, torch.full((3,), 0.1))
    assert net[2].weight.is_contiguous(memory_format=torch.channels_last)


def test_it_goes_on_from_its_state_with_the_same_bits():
    whole, resumed = network(), network()
    average = average_of(whole, 0.9)
    for step in range(10):
        move(whole, step)
        average.update(step)
        if step == 4:
            buffer = io.BytesIO()
            torch.save({"net": whole.state_dict(), "average": average.state_dict()}, buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    later = average_of(resumed, 0.9)
    resumed.load_state_dict(state["net"])
    later.load_state_dict(state["average"])
    for step in range(5, 10):
        move(resumed, step)
        later.update(step)
    average.apply()
    later.apply()
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
