"""The loss of the soft decision tree: the paper's formula, its running means, and what the penalty is for."""

import numpy as np
import pytest
import torch

from dfkd.distill.objective import build_objective
from dfkd.distill.tree_loss import Tree
from dfkd.models import soft_tree
from dfkd.models.features.outputs import Outputs
from dfkd.system.errors import RequestError

NODES, CLASSES, BATCH = 7, 3, 5


def made(rng, **options) -> Tree:
    loss = Tree(**options)
    loss.setup(*sides(rng))
    return loss.double()


def sides(rng) -> tuple[Outputs, Outputs]:
    logits, right, theirs = (
        rng.normal(size=(BATCH, CLASSES)),
        rng.uniform(size=(BATCH, NODES)),
        rng.normal(size=(BATCH, CLASSES)),
    )
    return Outputs(torch.tensor(logits), {"turns": torch.tensor(right)}), Outputs(torch.tensor(theirs))


def shares(batches: list[np.ndarray], window: float) -> list[float]:
    """The share of each node that turns right, over all batches; a batch is [images, nodes]."""
    found = []
    for node in range(NODES):
        depth = int(np.log2(node + 1))
        decay = 1 - 1 / (window * 2**depth)
        turning = arriving = 0.0
        for right in batches:
            reach, here = np.ones(len(right)), node
            while here:
                parent = (here - 1) // 2
                reach = reach * (right[:, parent] if here == 2 * parent + 2 else 1 - right[:, parent])
                here = parent
            turning, arriving = decay * turning + (reach * right[:, node]).mean(), decay * arriving + reach.mean()
        found.append(turning / arriving)
    return found


def formula(logits, batches, theirs, penalty=0.3, temperature=2.0, window=1.0) -> float:
    odds = np.exp(theirs / temperature)
    p = odds / odds.sum(axis=1, keepdims=True)
    total = -(p * logits).sum(axis=1).mean()
    for node, share in enumerate(shares(batches, window)):
        total -= penalty * 2.0 ** -int(np.log2(node + 1)) * (np.log(share) + np.log(1 - share)) / 2
    return total


def test_tree__has_the_papers_value_and_gradient(rng):
    loss = made(rng, penalty=0.3, temperature=2.0)
    ours, theirs = sides(rng)
    right, logits = ours.features["turns"].requires_grad_(), ours.logits.requires_grad_()
    value = loss(ours, theirs)
    value.backward()
    arrays = [x.detach().numpy().copy() for x in (logits, right, theirs.logits)]
    assert value.item() == pytest.approx(formula(arrays[0], [arrays[1]], arrays[2]), rel=1e-9)
    for position, grad in enumerate((logits.grad, right.grad)):
        for index in np.ndindex(arrays[position].shape):
            moved = []
            for step in (1e-6, -1e-6):
                changed = [array.copy() for array in arrays]
                changed[position][index] += step
                moved.append(formula(changed[0], [changed[1]], changed[2]))
            assert grad[index].item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_tree__remembers_batches_twice_as_long_with_every_level(rng):
    loss = made(rng, penalty=0.3, temperature=2.0, window=1.5)
    seen = [sides(rng) for _ in range(4)]
    for ours, theirs in seen:
        value = loss(ours, theirs)
    batches = [ours.features["turns"].numpy() for ours, _ in seen]
    last = seen[-1]
    expected = formula(last[0].logits.numpy(), batches, last[1].logits.numpy(), window=1.5)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    before = loss.sums.clone()
    with torch.no_grad():  # a trial counts nothing
        loss(*seen[0])
    assert torch.equal(loss.sums, before)
    fresh = made(rng, penalty=0.3, temperature=2.0, window=1.5)
    fresh.load_state_dict(loss.state_dict())
    assert fresh(*seen[1]).item() == loss(*seen[1]).item()


def test_tree__is_the_cross_entropy_of_each_leaf_by_its_path(rng):
    """sum_l P_l sum_k p_k log Q_lk is what a tree's logits in training and the first part make together."""
    torch.manual_seed(0)
    tree = soft_tree(depth=2, image_size=4, num_classes=CLASSES, in_channels=1).train()
    images, p = torch.randn(BATCH, 1, 4, 4), torch.rand(BATCH, CLASSES).log_softmax(dim=1)
    loss = Tree(penalty=0.0)
    right = tree.right(images).detach()
    loss.setup(Outputs(p, {"turns": right}), Outputs(p))
    found = loss(Outputs(tree(images), {"turns": right}), Outputs(p))
    leaves, expected = tree.distributions.detach(), 0.0
    for i in range(BATCH):
        for leaf in range(4):
            turns = (right[i, 0] if leaf // 2 else 1 - right[i, 0], right[i, 1 + leaf // 2])
            path = turns[0] * (turns[1] if leaf % 2 else 1 - turns[1])
            expected -= float(path * (p[i].exp() * leaves[leaf]).sum()) / BATCH
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_penalty__keeps_both_sides_of_a_node_in_use(penalty):
    """Images that one side of the root tells apart well enough: only with the penalty are both used alike."""
    torch.manual_seed(0)
    tree = soft_tree(depth=1, image_size=2, num_classes=2, in_channels=1).train()
    with torch.no_grad():
        tree.filters.bias.fill_(3.0)  # all go right
    images = torch.randn(64, 1, 2, 2)
    theirs = Outputs(5.0 * torch.stack([images[:, 0, 0, 0].abs() - 0.7, torch.zeros(64)], dim=1))
    loss = Tree(penalty=penalty)
    loss.setup(Outputs(theirs.logits, {"turns": tree.right(images)}), theirs)
    optimizer = torch.optim.SGD(tree.parameters(), lr=0.5)
    for _ in range(60):
        value = loss(Outputs(tree(images), {"turns": tree.right(images)}), theirs)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    share = tree.right(images).mean().item()
    assert abs(share - 0.5) < 0.1 if penalty else share > 0.8


def test_tree__is_finite_where_no_image_reaches_a_node():
    right = torch.zeros(2, NODES).requires_grad_()
    ours = Outputs(torch.zeros(2, CLASSES, requires_grad=True), {"turns": right})
    loss = Tree()
    loss.setup(ours, ours)
    value = loss(ours, Outputs(torch.zeros(2, CLASSES)))
    value.backward()
    assert value.isfinite() and right.grad.isfinite().all()


@pytest.mark.parametrize("arriving", [1e-18, 1e-36, 1e-44])
def test_tree__is_finite_where_images_have_not_reached_a_node_for_long(arriving):
    """The running means halve with each batch. The quotient's gradient overflows before they are 0."""
    right = torch.full((2, NODES), 0.5)
    right[:, 0] = 1.0  # no image reaches the left half
    right.requires_grad_()
    ours = Outputs(torch.zeros(2, CLASSES, requires_grad=True), {"turns": right})
    loss = Tree()
    loss.setup(ours, ours)
    loss.sums[:2] = arriving * torch.tensor([[2e-6], [1.0]])
    loss(ours, Outputs(torch.zeros(2, CLASSES))).backward()
    assert right.grad.isfinite().all()


def test_tree__is_named_and_refuses_what_it_cannot_be():
    assert build_objective(["tree:penalty=0.5"]).student_modules == {"turns": "tree"}
    for text, said in (
        ("tree:penalty=-1", "penalty=-1"),
        ("tree:temperature=0", "temperature=0"),
        ("tree:window=0", "window=0"),
    ):
        with pytest.raises(RequestError, match=said):
            build_objective([text])
