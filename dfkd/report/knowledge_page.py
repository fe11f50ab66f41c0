"""Section of a page about quantified knowledge: entropy maps, numbers of concepts, and concepts during training."""

import numpy as np
from jaxtyping import Float, UInt8

from dfkd.models.features.pixel_entropy import SIGNIFICANT
from dfkd.report.charts import figure, legend, lines
from dfkd.report.image_tags import gallery_item, image_tag
from dfkd.report.knowledge import Knowledge, Learning
from dfkd.report.markup import Html, join, section, table, tag


def knowledge_section(known: Knowledge | None, raw: bool) -> Html:
    """Return the section. It is empty if no entropies were learned."""
    if known is None:
        return Html()
    names = [*known.entropies]
    items = []
    for number, pixels in enumerate(known.pixels):
        pictures = [image_tag(pixels, raw, "image")]
        words = []
        for who, entropies in known.entropies.items():
            entropy = entropies[number]
            alt = f"pixel-wise entropy of the {who}"
            pictures.append(image_tag(gray(entropy), True, alt, f"entropy of the {who}"))
            words.append(f"{who} {entropy.mean():.2f}")
        caption = f"mean entropy: {', '.join(words)} nats"
        items.append(gallery_item(tag("div", *pictures, class_="side"), caption))
    note = (
        f"Beside each image the pixel-wise entropy of {', then '.join(names)}: how much noise a part "
        "tolerates before the deepest features change. Dark parts are used, light ones are not; each map has its own "
        f"range. A visual concept is a part whose entropy is {SIGNIFICANT} nats below the mean of the background's "
        "(arXiv 2003.03622)."
    )
    return section(
        "What is used of an image",
        tag("p", note, class_="note"),
        _counts(known),
        _learning(known),
        tag("ul", *items, class_="gallery wide" if len(names) < 3 else "gallery wider"),
    )


def _counts(known: Knowledge) -> Html:
    counts = known.counts()
    if counts is None:
        return Html()
    body = [[name, *(f"{value:.3g}" for value in values)] for name, values in counts.items()]
    head = ["network", "on the foreground", "on the background", "share on the foreground"]
    return table("Visual concepts, means over images", head, body)


def _learning(known: Knowledge) -> Html:
    """Return the concepts during training of each network that kept weights, or a hint if none did."""
    if known.masks is None:
        return Html()
    if not known.learning:
        hint = "dfkd distill --keep-weights 10 lets this page count concepts while a student learns."
        return tag("p", hint, class_="note")
    styles = {name: number for number, name in enumerate(known.learning)}
    curves = {name: curve(learnt) for name, learnt in known.learning.items()}
    ends = "; ".join(f"{name}: {points[-1][1]:.3g} at {points[-1][0]:.3g}" for name, points in curves.items())
    title = "Concepts on the foreground over weight distance"
    body = [
        [name, f"{len(learnt.steps):,}", *(f"{value:.3g}" for value in learnt.measures().values())]
        for name, learnt in known.learning.items()
    ]
    note = (
        "Weight distance is the length of the path of the weights through the kept moments, relative to the norm of "
        "the first weights. An image has the most concepts on its foreground at some distance. D mean and D std are "
        "the mean and the standard deviation of this distance over images. A low D mean says that the network learns "
        "quickly, a low D std that it learns all images at once. rho is the share of all concepts ever learned that "
        "are kept. A high rho says that few were forgotten."
    )
    return join(
        (
            tag("h3", "How concepts were learned"),
            tag("p", note, class_="note"),
            table("Learning, by the kept weights", ["network", "moments", "D mean", "D std", "rho"], body),
            figure(f"{title}, the mean over images.", lines(title, ends, curves, styles)),
            legend(styles),
        )
    )


def curve(learnt: Learning) -> list[tuple[float, float]]:
    """Return the number of concepts on the foreground over the weight distance."""
    return [*zip(learnt.distance.tolist(), learnt.counts.tolist(), strict=True)]


def gray(values: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "rows columns 1"]:
    """Convert values to a gray image, from black for the lowest to white for the highest."""
    low, high = float(values.min()), float(values.max())
    return np.round(255 * (values - low) / (high - low or 1.0)).astype(np.uint8)[..., None]
