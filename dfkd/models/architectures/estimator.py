"""Classifiers of scikit-learn as networks: fitted by scikit-learn, stored as tensors, and run by torch.

The file of a student holds arrays and nothing that is executed. The student runs without scikit-learn.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

LEAST = 0.01
"""Smallest probability of a class in an image's target. Every class of a target adds a row to the training data."""
_NEVER = -20.0
"""Logit of a class that no target has."""


class Estimator(nn.Module):
    """A classifier of pixels that is fitted at once, without gradients."""

    learns_by: ClassVar[tuple[str, ...]] = ("kd:temperature=1",)
    """Loss of the fit: the cross-entropy with the teacher's probabilities."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size

    def fit(self, x: Float[np.ndarray, "images features"], p: Float[np.ndarray, "images classes"], seed: int) -> None:
        """Fit the distributions `p`. Raises: ValueError if all images have the same class."""
        raise NotImplementedError


class Logistic(Estimator):
    """Logistic regression on the pixels."""

    def __init__(self, strength: float, image_size: int, num_classes: int, in_channels: int) -> None:
        super().__init__(image_size)
        self.strength = strength
        self.regression = nn.Linear(in_channels * image_size**2, num_classes).requires_grad_(False)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        logits: Tensor = self.regression(x.flatten(1))
        return logits

    def fit(self, x: Float[np.ndarray, "images features"], p: Float[np.ndarray, "images classes"], seed: int) -> None:
        """Fit by L-BFGS, as `Estimator.fit`."""
        from sklearn.linear_model import LogisticRegression

        rows, classes, weights = expanded(p)
        found = LogisticRegression(C=self.strength, max_iter=1000).fit(x[rows], classes, weights)
        weight, bias = np.zeros(self.regression.weight.shape), np.full(self.regression.bias.shape, _NEVER)
        two = len(found.classes_) == 2  # two classes have one vector, for the difference of their logits
        known = found.classes_[1:] if two else found.classes_
        bias[found.classes_] = 0
        weight[known], bias[known] = found.coef_, found.intercept_
        self.regression.weight.copy_(torch.from_numpy(weight))
        self.regression.bias.copy_(torch.from_numpy(bias))


class Boosting(Estimator):
    """Gradient-boosted trees on the pixels: `rounds` trees for each class, of at most `leaves` leaves."""

    feature: Tensor
    left: Tensor
    right: Tensor

    def __init__(
        self,
        rounds: int,
        leaves: int,
        depth: int,
        rate: float,
        image_size: int,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__(image_size)
        self.rounds, self.depth, self.rate, self.leaves = rounds, depth, rate, leaves
        self.features = in_channels * image_size**2
        shape = rounds * num_classes, 2 * leaves - 1
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int64))
        self.threshold = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.value = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.baseline = nn.Parameter(torch.zeros(num_classes), requires_grad=False)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        x = x.flatten(1).float()
        if x.shape[1] != self.features:
            raise ValueError(
                f"the trees are for images of another size: {self.features} pixel values, not {x.shape[1]}"
            )
        trees = torch.arange(len(self.value), device=x.device)
        # x.shape[0], because torch.export takes len(x) for a constant
        node = torch.zeros(x.shape[0], len(trees), dtype=torch.int64, device=x.device)
        for _ in range(self.depth):
            goes_left = x.gather(1, self.feature[trees, node]) <= self.threshold[trees, node]
            node = torch.where(goes_left, self.left[trees, node], self.right[trees, node])
        return self.value[trees, node].unflatten(1, (self.rounds, -1)).sum(dim=1) + self.baseline

    def fit(self, x: Float[np.ndarray, "images features"], p: Float[np.ndarray, "images classes"], seed: int) -> None:
        """Fit trees on histograms of the pixel values, as `Estimator.fit`."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        rows, classes, weights = expanded(p)
        found = HistGradientBoostingClassifier(
            learning_rate=self.rate,
            max_iter=self.rounds,
            max_leaf_nodes=self.leaves,
            max_depth=self.depth,
            early_stopping=False,
            random_state=seed % 2**32,
        ).fit(x[rows], classes, weights)
        two = len(found.classes_) == 2  # two classes have one tree per round, for the difference of their logits
        known = found.classes_[1:] if two else found.classes_
        self.baseline.fill_(_NEVER)
        self.baseline[torch.from_numpy(found.classes_)] = 0
        self.baseline[torch.from_numpy(known)] = torch.from_numpy(np.ravel(found._baseline_prediction)).float()
        count = len(self.baseline)
        for turn, trees in enumerate(found._predictors):
            for k, tree in zip(known, trees, strict=True):
                self._take(turn * count + int(k), tree.nodes)

    def _take(self, row: int, nodes: Any) -> None:
        """Store one tree. The children of a leaf are the leaf itself."""
        leaf, own = nodes["is_leaf"].astype(bool), np.arange(len(nodes))
        columns = {
            "feature": np.where(leaf, 0, nodes["feature_idx"]),
            "left": np.where(leaf, own, nodes["left"]),
            "right": np.where(leaf, own, nodes["right"]),
            "threshold": np.where(leaf, 0, nodes["num_threshold"]),
            "value": np.where(leaf, nodes["value"], 0),
        }
        for name, column in columns.items():
            kept: Tensor = getattr(self, name)
            kept[row, : len(nodes)] = torch.from_numpy(column).to(kept.dtype)


def expanded(
    p: Float[np.ndarray, "images classes"],
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Repeat each image for each of its classes, with the probability as weight: the gradient is that of `p`.

    Returns image, class and weight of each row.
    Raises: ValueError if all images have the same class.
    """
    kept = np.where(p >= min(LEAST, 1 / p.shape[1]), p, 0)
    rows, classes = np.nonzero(kept)
    if len(np.unique(classes)) < 2:
        raise ValueError("the teacher gives all images the same class")
    return rows, classes, (kept / kept.sum(axis=1, keepdims=True))[rows, classes]


def sklearn(
    kind: Literal["boosting", "logistic"] = "boosting",
    rounds: int = 100,
    leaves: int = 31,
    depth: int = 6,
    rate: float = 0.1,
    strength: float = 1.0,
    image_size: int = 32,
    num_classes: int = 10,
    in_channels: int = 3,
) -> Estimator:
    """Build a classifier of scikit-learn: gradient-boosted trees, or logistic regression.

    The regularization of the logistic regression is 1 / `strength`.
    Raises: ValueError for a number out of range.
    """
    for name, number in {"rounds": rounds, "leaves": leaves - 1, "depth": depth}.items():
        if number < 1:
            raise ValueError(f"{name}={number + (name == 'leaves')} is too small")
    for name, size in {"rate": rate, "strength": strength}.items():
        if not size > 0:
            raise ValueError(f"{name}={size} is not above 0")
    if kind == "logistic":
        return Logistic(strength, image_size, num_classes, in_channels)
    return Boosting(rounds, leaves, depth, rate, image_size, num_classes, in_channels)
