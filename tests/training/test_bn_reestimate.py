import numpy as np
import torch
from torch import nn

from dfkd.training.bn_reestimate import batch_norms, reestimate


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 4),
        nn.BatchNorm1d(4, momentum=0.3), nn.BatchNorm1d(4, track_running_stats=False),
    )  # fmt: skip


def test_the_statistics_are_the_plain_means_over_batches():
    net = network()
    torch.nn.init.uniform_(net[1].weight)
    views = [torch.randn(size, 2, 2, 2) * scale for size, scale in ((16, 1.0), (8, 3.0), (16, 0.5))]
    with torch.no_grad():
        net(views[0])  # what stood there before does not matter
    reestimate(net, iter(views))
    weights = {name: value.double().numpy() for name, value in net.state_dict().items()}
    seen = {1: [], 6: []}
    for view in views:
        x = np.einsum("oc,nchw->nohw", weights["0.weight"][:, :, 0, 0], view.double().numpy())
        x += weights["0.bias"][:, None, None]
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        pixels = x[:, 0].size
        seen[1].append((mean, var * pixels / (pixels - 1)))
        x = (x - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None]
        x = np.maximum(x * weights["1.weight"][:, None, None] + weights["1.bias"][:, None, None], 0)
        x = x.reshape(len(x), -1) @ weights["5.weight"].T + weights["5.bias"]  # nothing was dropped
        seen[6].append((x.mean(0), x.var(0, ddof=1)))
    for layer, moments in seen.items():
        mean, var = (np.mean(values, axis=0) for values in zip(*moments, strict=True))
        np.testing.assert_allclose(net[layer].running_mean, mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(net[layer].running_var, var, rtol=1e-4)


def test_nothing_else_changes():
    net = network().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    reestimate(net, [torch.randn(16, 2, 2, 2)])
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) != name.endswith(statistics)
    assert [norm.momentum for norm in batch_norms(net)] == [0.1, 0.3]
    assert not any(module.training for module in net.modules())
    assert not any(p.grad is not None for p in net.parameters())


def test_layers_without_statistics_do_not_count():
    assert (
        batch_norms(nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2), nn.BatchNorm1d(2, track_running_stats=False)))
        == []
    )
    assert [type(norm) for norm in batch_norms(network())] == [nn.BatchNorm2d, nn.BatchNorm1d]
