import pytest
import torch
from torch import nn

from dfkd.training.optim import default_rate, learning_rate, make_optimizer, set_rate


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    rates = [learning_rate(step, 1000, 0.4, 0.3) for step in range(1000)]
    assert rates[0] == pytest.approx(0.4 / 25)
    assert rates[300] == max(rates) == pytest.approx(0.4)
    assert rates[:301] == sorted(rates[:301])
    assert rates[300:] == sorted(rates[300:], reverse=True)
    assert rates[650] == pytest.approx(0.2)
    assert 0 < rates[-1] < 1e-5


def test_the_rate_agrees_with_torchs_one_cycle():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=101, pct_start=0.3, cycle_momentum=False)
    for step in range(100):
        # theirs peaks at step 0.3 * 101 - 1 and ends one step later: the shapes agree, shifted by less than two steps
        low, high = sorted(
            [learning_rate(max(step - 1, 0), 100, 0.4, 0.3), learning_rate(min(step + 1, 99), 100, 0.4, 0.3)]
        )
        assert low - 2e-3 <= optimizer.param_groups[0]["lr"] <= max(high, 0.4 if 28 <= step <= 31 else 0) + 2e-3
        optimizer.step()
        cycle.step()


def test_no_warmup_starts_at_the_peak():
    assert learning_rate(0, 10, 0.4, 0.0) == 0.4


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_vectors_are_not_decayed_and_frozen_ones_stay(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    frozen = nn.Linear(3, 3).requires_grad_(False)
    before = [p.clone() for p in (net[0].weight, net[0].bias, frozen.weight)]
    optimizer = make_optimizer([net, frozen], kind, 0.1)
    set_rate(optimizer, 0.5)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    ahead = 1.9 if kind == "sgd" else 1.0  # Nesterov's first step looks 0.9 ahead
    torch.testing.assert_close(net[0].weight, before[0] * (1 - 0.5 * 0.1 * ahead))
    assert torch.equal(net[0].bias, before[1])
    assert torch.equal(frozen.weight, before[2])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_what_gets_no_gradient_waits_and_then_starts_as_if_new(kind):
    late, early = nn.Linear(3, 3), nn.Linear(3, 3)
    before = late.weight.detach().clone()
    optimizer = make_optimizer([early, late], kind, 0.1)
    set_rate(optimizer, 0.5)
    for p in early.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(late.weight, before)
    late.weight.grad = torch.ones_like(before)
    optimizer.step()
    fresh = nn.Linear(3, 3)
    fresh.load_state_dict({"weight": before, "bias": late.bias})
    alone = make_optimizer([fresh], kind, 0.1)
    set_rate(alone, 0.5)
    fresh.weight.grad = torch.ones_like(before)
    alone.step()
    assert torch.equal(late.weight, fresh.weight)


def test_the_default_rate_is_small_without_batch_normalization_and_for_layers_of_the_teacher():
    from dfkd.models import cifar_resnet, lenet5

    assert default_rate("sgd", cifar_resnet(depth=8)) == 0.4
    assert default_rate("sgd", cifar_resnet(depth=8), "teacher") == 0.1
    assert default_rate("sgd", lenet5(), "teacher") == default_rate("sgd", lenet5()) == 0.02
    assert default_rate("sgd", cifar_resnet(depth=8), photographs=True) == 0.1
    assert default_rate("sgd", cifar_resnet(depth=8), "classifier") == 0.1
    assert default_rate("adamw", lenet5()) == default_rate("adamw", lenet5(), "classifier") == 0.002
    assert default_rate("adamw", lenet5(), trained=True) == 0.0005
    assert default_rate("adamw", lenet5(), "classifier", trained=True) == 0.0001


def test_default_rate__is_smaller_for_depthwise_convolutions():
    narrow = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.BatchNorm2d(8))
    assert default_rate("sgd", narrow) == 0.1
    narrow[1] = torch.nn.Conv2d(8, 8, 3, groups=2)
    assert default_rate("sgd", narrow) == 0.4


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("sgd", lambda groups: torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, fused=True)),
        ("adamw", lambda groups: torch.optim.AdamW(groups, lr=0.0, fused=True)),
    ],
)
def test_it_is_torchs_own_optimizer_to_the_bit(kind, theirs):
    torch.manual_seed(0)
    nets = [nn.Linear(5, 3), nn.Linear(5, 3)]
    nets[1].load_state_dict(nets[0].state_dict())
    ours = make_optimizer([nets[0]], kind, 0.1)
    groups = [
        {"params": [nets[1].weight], "weight_decay": 0.1},
        {"params": [nets[1].bias], "weight_decay": 0.0},
    ]
    reference = theirs(groups)
    for step in range(6):
        x = torch.randn(4, 5)
        for net, optimizer in zip(nets, (ours, reference), strict=True):
            set_rate(optimizer, 0.1 / (step + 1))
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
        if step == 2:  # as a resumed run does
            again = make_optimizer([nets[0]], kind, 0.1)
            again.load_state_dict(ours.state_dict())
            ours = again
    assert torch.equal(nets[0].weight, nets[1].weight) and torch.equal(nets[0].bias, nets[1].bias)
