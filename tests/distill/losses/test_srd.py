"""SRD: the student's features through the teacher's classifier."""

import numpy as np
import pytest
import torch
from torch import nn

from dfkd.distill.losses import SRD
from dfkd.distill.setting import Setting
from dfkd.system.errors import RequestError


@pytest.fixture
def pair(normal):
    return normal(
        {"logits": (3, 5), "stage1": (3, 2, 6, 6), "stage2": (3, 2, 4, 3)},
        {"logits": (3, 5), "stage1": (3, 3, 6, 6), "stage2": (3, 4, 3, 3), "last": (3, 4)},
    )


@pytest.fixture
def bound(outputs):
    """The loss after its setup, in float64, with a teacher's last layer of 4 features and 5 classes."""

    def of(student, teacher, head=None, **options):
        def unused(view):
            raise AssertionError("no image is asked for")

        torch.manual_seed(0)
        head = nn.Linear(4, 5).double() if head is None else head
        loss = SRD(**options)
        loss.bind(Setting(unused, unused, None, head, None))
        loss.setup(outputs(student), outputs(teacher))
        return loss.double(), head

    return of


@pytest.mark.parametrize(("bias", "options"), [(True, {}), (False, {"feature": 0.0}), (True, {"feature": 10.0})])
def test_value_and_gradients(pair, bound, check_formula, maps, bias, options):
    student, teacher = pair
    loss, head = bound(student, teacher, nn.Linear(4, 5, bias=bias).double(), **options)
    weight = head.weight.detach().numpy()
    shift = head.bias.detach().numpy() if bias else 0

    def formula(student):
        own = {name: value.numpy() for name, value in loss.state_dict().items()}
        x = maps.conv(student["stage2"], own["connector.0.weight"])
        x = np.maximum(maps.norm(x, own["connector.1.weight"], own["connector.1.bias"]), 0).mean(axis=(2, 3))
        semantic = ((x @ weight.T + shift - teacher["logits"]) ** 2).mean()
        return semantic + options.get("feature", 1.0) * ((x - teacher["last"]) ** 2).mean()

    check_formula(loss, student, teacher, formula, own=True)


def test_the_teachers_classifier_is_frozen_and_no_part_of_the_loss(pair, bound, outputs):
    loss, head = bound(*pair)
    assert {name for name, _ in loss.named_parameters()} == {
        f"connector.{name}" for name in ("0.weight", "1.weight", "1.bias")
    }
    loss(*(outputs(side, grad=True) for side in pair)).backward()
    assert head.weight.grad is None
    assert head.bias.grad is None


def test_is_zero_where_the_connected_feature_equals_the_teachers(pair, bound, outputs):
    student, teacher = pair
    loss, head = bound(student, teacher)
    with torch.no_grad():
        last = loss.connector(torch.tensor(student["stage2"])).mean(dim=(2, 3))
        same = {**teacher, "last": last.numpy(), "logits": head(last).numpy()}
        assert loss(outputs(student), outputs(same)).item() < 1e-20


def test_the_batch_may_be_permuted(pair, bound, check_permutation):
    check_permutation(bound(*pair)[0], *pair)


def test_is_finite_where_features_are_degenerate(pair, bound, check_survives):
    loss, head = bound(*pair)
    head.float()
    check_survives(loss, *pair)


def test_what_it_cannot_use_is_refused(pair, bound, outputs):
    student, teacher = pair
    with pytest.raises(RequestError, match=r"^feature=-1 is"):
        SRD(feature=-1.0)
    with pytest.raises(RequestError, match="srd needs a teacher whose logits come from a linear layer"):
        SRD().bind(Setting(print, print, nn.Linear(2, 5), None, None))
    with pytest.raises(RequestError, match="feature 'last' has 4 values, its last layer takes 8"):
        bound(student, teacher, nn.Linear(8, 5))
    with pytest.raises(RequestError, match=r"^the feature 'stage'"):
        bound({**student, "stage2": student["logits"]}, teacher)
