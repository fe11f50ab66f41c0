import numpy as np
import pytest
import torch

from dfkd.distill.distributions import kl, kl_of_each, others
from dfkd.system.errors import RequestError
from dfkd.system.limits import check_above, check_at_least


def test_kl_is_averaged_over_the_rows():
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.25, 0.75], [0.9, 0.1]])
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert kl(torch.tensor(p), torch.tensor(q).log()).item() == pytest.approx(expected / 2)
    assert kl_of_each(torch.tensor(p), torch.tensor(q).log()).tolist() == pytest.approx([expected, 0])


def test_kl_takes_probabilities_of_zero_and_their_gradient_is_finite():
    log_q = torch.tensor([[0.5, 0.5]]).log().requires_grad_(True)
    value = kl(torch.tensor([[1.0, 0.0]]), log_q)
    value.backward()
    assert value.item() == pytest.approx(np.log(2))
    assert log_q.grad.tolist() == [[-1.0, 0.0]]


def test_others_are_the_classes_but_one_in_their_order():
    assert others(torch.tensor([0, 2, 3]), 4).tolist() == [[1, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert others(torch.tensor([1, 0]), 2).tolist() == [[0], [1]]
    assert others(torch.tensor([0]), 1).shape == (1, 0)


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
def test_what_is_not_above(value):
    with pytest.raises(RequestError, match=f"^b={value:g} is not above 0"):
        check_above(a=1.0, b=value)


@pytest.mark.parametrize("value", [0, float("inf"), float("nan")])
def test_what_is_not_at_least(value):
    with pytest.raises(RequestError, match=f"^b={value:g} is not at least 1"):
        check_at_least(1, a=1, b=value)
