"""A generalist and specialists that vote, against the paper's way to the vote: descent on its logits."""

import pytest
import torch
from torch import nn

from dfkd.config.stages.shared import Input
from dfkd.models.architectures.specialists import Specialists, parse_groups, spell_groups
from dfkd.models.load import load_model
from dfkd.system.errors import RequestError

GROUPS, CLASSES, BATCH = [[0, 2, 5], [1, 4]], 7, 6


class Says(nn.Module):
    """Answers with rows of its own, whatever the images are."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, images):
        return self.rows + 0 * images.mean()


def rows(seed):
    return 2 * torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(seed))


def voting(general, *special):
    return Specialists(Says(general), [Says(one) for one in special], GROUPS, CLASSES).eval()


def vote(*given):
    return voting(*given)(torch.zeros(BATCH, 1, 2, 2))


def divergences(u, general, special):
    """The paper's sum for each image, from the vote's logits `u`; of `special` those vote who are to."""
    q, p = u.softmax(1), general.double().softmax(1)
    total = (p * (p / q).log()).sum(1)
    for logits, group in zip(special, GROUPS, strict=True):
        p = logits.double().softmax(1)
        rest = [k for k in range(CLASSES) if k not in group]
        others = p[:, rest].sum(1)
        own = (p[:, group] * (p[:, group] / q[:, group]).log()).sum(1) + others * (others / q[:, rest].sum(1)).log()
        total = total + own * torch.isin(general.argmax(1), torch.tensor(group))
    return total


def test_vote__has_the_least_sum_of_divergences():
    general, special = rows(0), [rows(1), rows(2)]
    votes = torch.isin(general.argmax(1), torch.tensor([*GROUPS[0], *GROUPS[1]]))
    assert votes.any() and not votes.all()
    found = vote(general, *special).detach().double().requires_grad_()
    sums = divergences(found, general, special)
    (slope,) = torch.autograd.grad(sums.sum(), found)
    assert slope.abs().max() < 1e-5
    u = torch.zeros(BATCH, CLASSES, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([u], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        total = divergences(u, general, special).sum()
        total.backward()
        return total

    search.step(loss)  # the paper has descent on the logits, too
    torch.testing.assert_close(divergences(u, general, special), sums, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.softmax(1), u.softmax(1), atol=1e-4, rtol=0)


def test_specialists__begin_as_the_generalist():
    general = rows(0)
    network = voting(general, general, general)
    network.shares.copy_(torch.tensor([0.1, 0.7]))
    said = network(torch.zeros(BATCH, 1, 2, 2))
    torch.testing.assert_close(said.softmax(1), general.softmax(1), atol=1e-6, rtol=1e-5)


def test_specialist__is_heard_where_the_generalist_names_one_of_its_classes():
    general = torch.zeros(BATCH, CLASSES)
    general[:, 4] = torch.tensor([3.0, -3.0, 3.0, -3.0, 3.0, -3.0])
    general[:, 3] = 1.0
    calm = vote(general, rows(1), rows(2))
    changed = vote(general, rows(3), rows(2))
    torch.testing.assert_close(calm, changed)  # class 3 is nobody's, and class 4 is not the first one's
    other = vote(general, rows(1), rows(4))
    moved = (calm - other).abs().amax(1) > 1e-3
    assert moved.tolist() == [True, False, True, False, True, False]


def test_training__takes_the_oversampling_off_the_dustbin_and_leaves_the_generalist():
    network = Specialists(nn.BatchNorm2d(CLASSES), [Says(rows(1)), Says(rows(2))], GROUPS, CLASSES)
    network.generalist = nn.Sequential(nn.BatchNorm2d(CLASSES), nn.Flatten())
    network.shares.copy_(torch.tensor([0.2, 0.5]))
    network.train()
    assert network.experts.training and not network.generalist.training
    heard = []
    network.experts.register_forward_hook(lambda module, given, output: heard.append(output.detach()))
    images = torch.zeros(BATCH, CLASSES, 1, 1)
    network(images), network.eval()(images)
    less = (heard[1] - heard[0])[0]
    expected = torch.zeros(2, CLASSES)
    expected[0, [1, 3, 4, 6]] = torch.tensor(4.0).log()  # 0.8 of the images become half of them, and 0.2 the other half
    torch.testing.assert_close(less, expected)


def test_specialists__are_built_from_their_text():
    model = load_model("specialists:network='cifar_resnet:depth=8,width=2',groups='0+3 1+7'", Input(image_size=12))
    assert (model.classes, model.channels) == (10, 3)
    assert len(model.module.experts.networks) == 2
    assert spell_groups(parse_groups("3+0 1+7")) == "0+3 1+7"


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("0+x", "not different classes as in"),
        ("0+0", "not different classes as in"),
        ("0+1 1+2", "groups have class 1 twice"),
        ("0", "group 0 is not 2 to 9 of 10 classes"),
        ("3+10", "not 2 to 9 of 10 classes"),
    ],
)
def test_specialists__refuse_groups_that_are_none(groups, message):
    with pytest.raises(RequestError, match=message):
        load_model(f"specialists:network='cifar_resnet:depth=8,width=2',groups='{groups}'", Input(image_size=12))


def test_vote__has_gradients_except_in_training():
    """A generator and Grad-CAM follow those of a teacher or a student; no loss may train the vote itself."""
    network, images = voting(rows(0), rows(1), rows(2)), torch.zeros(BATCH, 1, 2, 2, requires_grad=True)
    assert network(images).requires_grad
    assert not network.train()(images).requires_grad
