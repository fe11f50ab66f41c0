import numpy as np
import pytest
import torch

from dfkd.config.stages.shared import Input
from dfkd.models import soft_tree
from dfkd.models.architectures.soft_tree import SoftTree, reached
from dfkd.models.load import load_model
from dfkd.system.errors import RequestError


def small(**options: object) -> SoftTree:
    torch.manual_seed(0)
    tree = soft_tree(**{"depth": 3, "image_size": 4, "num_classes": 5, "in_channels": 1, "beta": 2.0, **options})
    torch.nn.init.normal_(tree.leaves)
    return tree


def by_hand(tree: SoftTree, image: np.ndarray) -> tuple[list[float], np.ndarray]:
    """The probability of every leaf, by descent from the root, and the leaves' distributions."""
    filters, biases = (p.detach().double().numpy() for p in (tree.filters.weight, tree.filters.bias))

    def descend(node: int, probability: float) -> list[float]:
        if node >= len(filters):
            return [probability]
        right = 1 / (1 + np.exp(-tree.turns.beta * (filters[node] @ image.ravel() + biases[node])))
        return descend(2 * node + 1, probability * (1 - right)) + descend(2 * node + 2, probability * right)

    odds = np.exp(tree.leaves.detach().double().numpy())
    return descend(0, 1.0), odds / odds.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("how", ["training", "leaf", "mixture"])
def test_soft_tree__gives_the_papers_logits(how):
    tree = small(predict="mixture" if how == "mixture" else "leaf").train(how == "training")
    images = torch.randn(6, 1, 4, 4)
    found = tree(images).detach().double().numpy()
    for image, logits in zip(images.double().numpy(), found, strict=True):
        paths, leaves = by_hand(tree, image)
        expected = {
            "training": np.array(paths) @ np.log(leaves),
            "leaf": np.log(leaves[int(np.argmax(paths))]),
            "mixture": np.log(np.array(paths) @ leaves),
        }[how]
        np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_reached__is_one_in_each_level():
    levels = reached(torch.rand(4, 15))
    assert [level.shape[1] for level in levels] == [1, 2, 4, 8, 16]
    for level in levels:
        torch.testing.assert_close(level.sum(dim=1), torch.ones(4))


def test_path__leads_to_the_likeliest_leaf():
    tree = small().eval()
    image = torch.randn(1, 1, 4, 4)
    right = tree.right(image)[0]
    nodes = tree.path(right).tolist()
    leaf = int(np.argmax(by_hand(tree, image[0].numpy())[0]))
    assert nodes[0] == 0 and len(nodes) == 3
    # the binary digits of the leaf are the turns
    turns = [after == 2 * before + 2 for before, after in zip(nodes, [*nodes[1:], 7 + leaf], strict=True)]
    assert turns == [digit == "1" for digit in f"{leaf:03b}"]


def test_model__is_built_for_the_teachers_images():
    model = load_model("soft_tree:depth=2", Input(image_size=12), classes=4, channels=1)
    assert (model.image_size, model.classes, model.channels) == (12, 4, 1)
    assert "image_size=12" in model.architecture
    again = load_model(model.architecture)
    assert again.image_size == 12
    with pytest.raises(RequestError, match=r"soft_tree:image_size=16 builds it for this size"):
        load_model("soft_tree:depth=2,image_size=12", Input(image_size=16))


@pytest.mark.parametrize(
    ("options", "message"), [({"depth": 0}, "depth=0 is not from 1 to"), ({"beta": 0.0}, "beta=0.0 is not above 0")]
)
def test_soft_tree__refuses_what_is_no_tree(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
