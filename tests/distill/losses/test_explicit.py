import numpy as np
import pytest
import torch

from dfkd.distill.losses import Explicit
from dfkd.errors import RequestError


@pytest.fixture
def features(rng):
    return lambda first, last: {"first": rng.normal(size=first), "last": rng.normal(size=last)}


def test_it_is_the_mean_absolute_difference_at_both_places(features, outputs, prove):
    ours, theirs = (features((4, 2, 3, 3), (4, 6)) for _ in range(2))
    loss = Explicit()
    loss.setup(outputs(ours), outputs(theirs))
    assert not list(loss.parameters())
    prove(loss, ours, theirs, lambda arrays: sum(np.abs(arrays[k] - theirs[k]).mean() for k in ("first", "last")))


def test_it_projects_pools_and_averages(features, outputs, prove):
    ours, theirs = features((4, 2, 8, 8), (4, 3, 5, 5)), features((4, 5, 4, 4), (4, 6))
    loss = Explicit()
    loss.setup(outputs(ours), outputs(theirs))
    loss.double()
    weight = loss.projections["first"].weight.detach().numpy()[:, :, 0, 0]
    layer = loss.projections["last"]
    matrix, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()

    def formula(arrays):
        pooled = arrays["first"].reshape(4, 2, 4, 2, 4, 2).mean(axis=(3, 5))
        first = np.abs(np.einsum("oc,bchw->bohw", weight, pooled) - theirs["first"]).mean()
        last = arrays["last"].mean(axis=(2, 3)) @ matrix.T + bias
        return first + np.abs(last - theirs["last"]).mean()

    prove(loss, ours, theirs, formula)


def test_its_projections_learn(features, outputs):
    ours, theirs = features((4, 2, 3, 3), (4, 6)), features((4, 5, 3, 3), (4, 6))
    loss = Explicit()
    loss.setup(outputs(ours), outputs(theirs))
    loss.double()(outputs(ours), outputs(theirs)).backward()
    weight = loss.projections["first"].weight
    gap = np.einsum("oc,bchw->bohw", weight.detach().numpy()[:, :, 0, 0], ours["first"]) - theirs["first"]
    expected = np.einsum("bohw,bchw->oc", np.sign(gap), ours["first"]) / gap.size
    np.testing.assert_allclose(weight.grad.numpy()[:, :, 0, 0], expected, rtol=1e-6)


def test_it_is_zero_at_equality(features, outputs):
    same = features((4, 2, 3, 3), (4, 6))
    loss = Explicit()
    loss.setup(outputs(same), outputs(same))
    assert loss(outputs(same), outputs(same)).item() == 0


def test_it_refuses_tokens(features, outputs):
    tokens = outputs(features((4, 7, 5), (4, 6)))
    with pytest.raises(RequestError, match="'first' has shape"):
        Explicit().setup(tokens, tokens)


def test_bf16_features_are_compared_in_float32(features, outputs):
    ours, theirs = (features((4, 2, 3, 3), (4, 6)) for _ in range(2))
    loss = Explicit()
    loss.setup(outputs(ours, torch.float32), outputs(theirs, torch.float32))
    exact = loss(outputs(ours, torch.float32), outputs(theirs, torch.float32))
    theirs_low, ours_low = outputs(theirs, torch.bfloat16), outputs(ours, torch.bfloat16)
    low = sum(torch.nn.functional.l1_loss(ours_low.features[k].float(), theirs_low.features[k].float()) for k in ours)
    found = loss(ours_low, theirs_low)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(low.item(), rel=1e-6)
    assert found.item() == pytest.approx(exact.item(), rel=0.02)
