import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfkd.models.features.channel_groups import channel_groups
from dfkd.system.errors import RequestError


class Net(nn.Module):
    """Two convolutions of four channels, `between` them, and a classifier."""

    def __init__(self, between, out=4, **layers):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(out, 4, 3, padding=1)
        self.linear = nn.Linear(4, 10)
        self.between = between
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.linear(self.second(self.between(self, self.first(x))).mean(dim=(2, 3)))


class Mixer(nn.Module):
    """A layer of a list of maps."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, maps):
        return sum(maps) * self.weight[:, None, None]


def group(network, port, size=8):
    """Return the group that has a port."""
    (found,) = [group for group in channel_groups(network, 3, size) if port in group.ports]
    return found


def excited(net, x):
    scale = net.up(F.relu(net.down(x.mean(dim=(2, 3))))).sigmoid()
    return x * scale[:, :, None, None]


@pytest.mark.parametrize(
    ("network", "ports"),
    [
        (Net(lambda net, x: x), {("first", 0), ("second", 1)}),
        (Net(lambda net, x: F.relu(x, inplace=True)), {("first", 0), ("second", 1)}),
        (
            Net(lambda net, x: net.norm(x).relu(), norm=nn.BatchNorm2d(4)),
            {("first", 0), ("norm", 0), ("second", 1)},
        ),
        (
            Net(lambda net, x: net.depth(x) + x, depth=nn.Conv2d(4, 4, 3, padding=1, groups=4)),
            {("first", 0), ("depth", 0), ("second", 1)},
        ),
        (
            Net(lambda net, x: x + net.inner(x), inner=nn.Conv2d(4, 4, 1)),
            {("first", 0), ("inner", 0), ("inner", 1), ("second", 1)},
        ),
        (
            Net(excited, down=nn.Linear(4, 2), up=nn.Linear(2, 4)),
            {("first", 0), ("down", 1), ("up", 0), ("second", 1)},
        ),
    ],
    ids=["plain", "in place", "norm", "depthwise", "residual", "squeeze and excite"],
)
def test_channel_groups__channels_passed_on_one_by_one__form_a_group(network, ports):
    found = group(network, ("first", 0))
    assert found.ports == ports
    assert not found.mixed
    assert group(network, ("second", 0)).ports == {("second", 0), ("linear", 1)}
    assert not group(network, ("second", 0)).mixed


@pytest.mark.parametrize(
    "network",
    [
        Net(lambda net, x: x.flip(1)),
        Net(lambda net, x: x[:, [0, 2, 1, 3]]),
        Net(lambda net, x: torch.cat([x, x], dim=1), out=8),
        Net(lambda net, x: F.pad(x, (0, 0, 0, 0, 2, 2)), out=8),
        Net(lambda net, x: F.group_norm(x, 2)),
        Net(lambda net, x: net.grouped(x), grouped=nn.Conv2d(4, 4, 1, groups=2)),
        Net(lambda net, x: x.softmax(dim=1)),
        Net(lambda net, x: x.detach()),
    ],
    ids=["reversed", "two exchanged", "concatenated", "padded", "normalized", "grouped", "softmax", "no gradient"],
)
def test_channel_groups__channels_that_are_mixed__are_marked(network):
    assert group(network, ("second", 1)).mixed
    assert not group(network, ("second", 0)).mixed


def test_channel_groups__maps_that_are_flattened__are_marked():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    assert group(network, ("3", 1)).ports == {("0", 0), ("3", 1)}
    assert group(network, ("3", 1)).mixed
    assert not group(network, ("5", 1)).mixed


def test_channel_groups__weights_that_start_at_zero__hide_no_exchange():
    norm = nn.BatchNorm2d(4)
    nn.init.zeros_(norm.weight)
    assert group(Net(lambda net, x: net.norm(x).flip(1), norm=norm), ("second", 1)).mixed


@pytest.mark.parametrize(
    "network",
    [
        Net(lambda net, x: F.conv2d(x, net.hidden.weight), hidden=nn.Conv2d(4, 4, 1)),
        Net(lambda net, x: x * net.scale, scale=nn.Parameter(torch.ones(4, 1, 1))),
        Net(
            lambda net, x: net.hidden(x.movedim(1, 3).reshape(-1, 4)).reshape(len(x), 8, 8, 4).movedim(3, 1),
            hidden=nn.Linear(4, 4),
        ),
        Net(lambda net, x: net.mixer([x, x]), mixer=Mixer()),
    ],
    ids=["a layer that is not called", "a parameter without a layer", "rows of pixels", "a list"],
)
def test_channel_groups__what_cannot_be_followed__gives_no_groups(network):
    assert channel_groups(network, 3, 8) == []


def test_channel_groups__a_network_that_fails__is_refused():
    with pytest.raises(RequestError, match="fails in evaluation mode"):
        channel_groups(Net(lambda net, x: 1 / 0), 3, 8)


def test_channel_groups__network_random_state_and_hooks__stay_as_they_are():
    network = Net(lambda net, x: net.norm(x), norm=nn.BatchNorm2d(4)).train()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    channel_groups(network, 3, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules())
