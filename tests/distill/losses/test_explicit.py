import numpy as np
import pytest

from dfkd.distill.losses import Explicit
from dfkd.system.errors import RequestError


@pytest.fixture
def features(normal):
    return lambda first, last: normal({"first": first, "last": last})[0]


def test_it_is_the_mean_absolute_difference_at_both_places(features, check_formula, build):
    ours, theirs = (features((4, 2, 3, 3), (4, 6)) for _ in range(2))
    loss = build(Explicit, ours, theirs)
    assert not list(loss.parameters())
    check_formula(
        loss, ours, theirs, lambda arrays: sum(np.abs(arrays[k] - theirs[k]).mean() for k in ("first", "last"))
    )


def test_it_projects_pools_and_averages(features, check_formula, build):
    ours, theirs = features((4, 2, 8, 8), (4, 3, 5, 5)), features((4, 5, 4, 4), (4, 6))
    loss = build(Explicit, ours, theirs)
    weight = loss.projections["first"].weight.detach().numpy()[:, :, 0, 0]
    layer = loss.projections["last"]
    matrix, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()

    def formula(arrays):
        pooled = arrays["first"].reshape(4, 2, 4, 2, 4, 2).mean(axis=(3, 5))
        first = np.abs(np.einsum("oc,bchw->bohw", weight, pooled) - theirs["first"]).mean()
        last = arrays["last"].mean(axis=(2, 3)) @ matrix.T + bias
        return first + np.abs(last - theirs["last"]).mean()

    check_formula(loss, ours, theirs, formula, own=True)


def test_it_is_zero_at_equality(features, check_zero_at_equality, build):
    same = features((4, 2, 3, 3), (4, 6))
    check_zero_at_equality(build(Explicit, same, same), same, most=0)


def test_it_refuses_tokens(features, outputs):
    tokens = outputs(features((4, 7, 5), (4, 6)))
    with pytest.raises(RequestError, match="'first' has shape"):
        Explicit().setup(tokens, tokens)
