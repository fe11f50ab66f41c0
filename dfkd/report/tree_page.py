"""The HTML page of a soft decision tree: filters of the first nodes, and paths of single images to their leaves."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dfkd.config import InspectConfig
from dfkd.data import Pool, open_pool
from dfkd.models.architectures.soft_tree import SoftTree, reached
from dfkd.models.load import Model, load_model
from dfkd.report.charts import bar, figure
from dfkd.report.image_tags import data_uri, gallery_item, weight_colors
from dfkd.report.markup import Html, definitions, section, table, tag, write_page
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.spacing import evenly_spaced
from dfkd.system.text import class_name

LEVELS = 5
"""Levels in the picture of the tree. More levels would be too small to see."""
IMAGES = 6
"""Number of images whose paths are shown."""
LIKELIEST = 5
"""Classes that are shown of a leaf."""
_WIDTH, _ROW = 960, 92
"""Width of the picture of the tree, and height of a level, in units of the SVG's view box."""


def write_tree(config: InspectConfig, path: Path | None) -> None:
    """Write the page of a run's tree. Raises: RequestError for another student, or without `--out`."""
    model = load_model(config.folder)
    tree = model.module
    if not isinstance(tree, SoftTree):
        raise RequestError(
            f"{config.folder} is a run: dfkd compare {config.folder} --out FILE.html shows it, --verify checks its "
            "files; of a run, inspect shows the filters of a soft_tree"
        )
    if path is None:
        raise RequestError(f"{config.folder} is a run with a tree; --out FILE.html shows its filters")
    images = None
    if config.pool:
        images = open_pool(config.pool, image_size=tree.image_size, channels=tree.in_channels, frame=model.frame)
    write(path, Path(config.folder).resolve().name, model, tree, images)
    say(f"wrote {path}")


def write(path: Path, name: str, model: Model, tree: SoftTree, images: Pool | None) -> None:
    """Write the page of a tree. With `images`, the page shows the paths of some of them."""
    nodes, leaves = len(tree.filters.weight), len(tree.leaves)
    facts = [
        ("model", model.architecture),
        ("nodes, leaves", f"{nodes:,}, {leaves:,}"),
        ("classes at the leaves", _spread_of_leaves(model, tree)),
        ("prediction", "the most probable leaf" if tree.predict == "leaf" else "the mixture of all leaves"),
    ]
    levels = min(LEVELS, tree.depth)
    note = "A node turns right where the sum of its filter over the image, with its bias, is positive. Blue adds."
    write_page(
        path,
        f"Tree {name}",
        definitions(facts),
        section(
            f"The first {levels} levels",
            tag("p", note, class_="note"),
            figure("The filters, from the root down.", picture(filter_images(tree), levels)),
        ),
        _ways(model, tree, images),
    )


def filter_images(tree: SoftTree) -> UInt8[np.ndarray, "nodes height width 3"]:
    """Return every node's filter as an image.

    Filters of gray images go from orange over white to blue. Filters of color images are centered at a middle gray.
    """
    side = tree.image_size
    shape = (-1, tree.in_channels, side, side)
    weight = tree.filters.weight.detach().cpu().float().reshape(shape).permute(0, 2, 3, 1).numpy()
    share = weight / np.maximum(np.abs(weight).max(axis=(1, 2, 3), keepdims=True), 1e-12)
    if tree.in_channels == 3:
        return (127.5 + 127.5 * share).round().astype(np.uint8)
    return weight_colors(share.mean(axis=3, keepdims=True))


def picture(filters: UInt8[np.ndarray, "nodes height width 3"], levels: int) -> Html:
    """Draw the first levels of a tree: lines from every node to its children, and the filters on top."""
    places = {node: _place(node) for node in range(2**levels - 1)}
    lines, images = [], []
    for node, (x, y, side) in places.items():
        for child in (2 * node + 1, 2 * node + 2):
            if child in places:
                below = places[child]
                lines.append(tag("line", x1=x, y1=y + side / 2, x2=below[0], y2=below[1] - below[2] / 2, class_="grid"))
        uri = data_uri(filters[node], True)
        images.append(
            tag(
                "image",
                tag("title", f"node {node}"),
                href=uri,
                x=round(x - side / 2, 2),
                y=round(y - side / 2, 2),
                width=side,
                height=side,
                style="image-rendering: pixelated",
            )
        )
    words = f"{len(places)} filters in {levels} levels; the left child of a node is its turn to the left."
    named = (tag("title", "The filters of the first nodes"), tag("desc", words))
    box = f"0 0 {_WIDTH} {levels * _ROW}"
    return tag("svg", *named, *lines, *images, role="img", width="100%", viewBox=box)


def _place(node: int) -> tuple[float, float, int]:
    """Return the centre of a node in the picture, and the side of its filter."""
    level = (node + 1).bit_length() - 1
    spread = _WIDTH / 2**level
    across = node + 1 - 2**level
    return round(spread * (across + 0.5), 2), _ROW * (level + 0.5), min(64, int(spread) - 4)


@torch.no_grad()
def _spread_of_leaves(model: Model, tree: SoftTree) -> str:
    """Return the number of leaves of each class, as text."""
    counts = torch.bincount(tree.distributions.argmax(dim=1), minlength=model.classes).tolist()
    return ", ".join(f"{class_name(k, model.class_names)}: {count}" for k, count in enumerate(counts) if count)


@torch.no_grad()
def _ways(model: Model, tree: SoftTree, images: Pool | None) -> Html:
    heading = "The way of single images"
    if images is None:
        hint = "dfkd inspect RUN --out FILE.html --pool DATA shows the ways of images of DATA."
        return section(heading, tag("p", hint, class_="note"))
    picked = evenly_spaced(len(images), IMAGES)
    found = images.images(picked)
    pixels, picked = (np.delete(values, list(found.problems), axis=0) for values in (found.pixels, picked))
    right = tree.eval().right(model.preprocess(torch.from_numpy(pixels)))
    filters, origins = filter_images(tree), images.origins(picked)
    ways = zip(pixels, right, origins, strict=True)
    return section(heading, *(_way(model, tree, one, turns, filters, origin) for one, turns, origin in ways))


def _way(
    model: Model,
    tree: SoftTree,
    pixels: UInt8[np.ndarray, "height width channels"],
    right: Float[Tensor, " nodes"],
    filters: UInt8[np.ndarray, "nodes height width 3"],
    origin: str,
) -> Html:
    """Return the path from the root to the most probable leaf, the probability of each turn, and the leaf's classes."""
    paths = reached(right[None])[-1][0]
    leaf = int(paths.argmax())
    steps = [gallery_item(_image(pixels, f"the image {origin}"), "the image")]
    nodes = [*tree.path(right).tolist(), len(right) + leaf]
    for node, below in itertools.pairwise(nodes):
        turn = float(right[node]) if below == 2 * node + 2 else 1 - float(right[node])
        side = "right" if below == 2 * node + 2 else "left"
        words = f"{side} with {turn:.2f}"
        steps.append(gallery_item(_image(filters[node], f"node {node}"), words))
    classes = tree.distributions[leaf].exp()
    return tag(
        "div",
        tag("h3", f"{origin}: leaf {leaf}, reached with probability {float(paths[leaf]):.2f}"),
        tag("ul", *steps, class_="gallery"),
        table("The leaf's classes", ["class", "bar", "probability"], _bars(model, classes.tolist())),
    )


def _bars(model: Model, shares: Sequence[float]) -> list[list[object]]:
    """Return the rows of the most probable classes."""
    best = sorted(range(len(shares)), key=lambda k: -shares[k])[:LIKELIEST]
    return [[class_name(k, model.class_names), bar(shares[k]), f"{shares[k]:.3f}"] for k in best]


def _image(pixels: UInt8[np.ndarray, "height width channels"], words: str) -> Html:
    return tag("img", src=data_uri(pixels, True), alt=words, title=words, class_="pixelated")
