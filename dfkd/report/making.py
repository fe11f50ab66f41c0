"""Section of a page about generated images: logged metrics, and images from the generator's training."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.formats.run_records import LOGS, METRICS
from dfkd.report.charts import figure, lines
from dfkd.report.collect import read_metrics
from dfkd.report.contents import Contents
from dfkd.report.image_tags import gallery_item, image_tag
from dfkd.report.markup import Html, join, section, tag
from dfkd.system.spacing import evenly_spaced
from dfkd.training.loggers.base import PICTURES
from dfkd.training.loggers.pictures import FOLDER

SHOWN, SIDE = 24, 320
"""Number of shown images from the first to the last, and longer side of a training picture in pixels."""
HIDDEN = ("step", "learning_rate", "images_per_second")
WORDS = {
    "generated_classes": "Effective number of classes among 64 fresh images",
    "generated_distance": "Root mean square difference of two images, mean over pairs (pixels from 0 to 1)",
    "statistics_distance": "Distance to the statistics of the teacher's BatchNorm layers",
}


def making_section(contents: Contents) -> Html:
    """Return the section. It is empty for images of a pool."""
    manifest, folder = contents.shards.manifest, contents.shards.folder
    if manifest.source == "selection":
        return Html()
    rows = evenly_spaced(len(contents.shards), SHOWN)
    raw, origins = not contents.shards.encoded, contents.shards.column("source", rows)
    made = [
        tag("li", image_tag(pixels, raw, str(origin), str(origin)))
        for pixels, origin in zip(contents.shards.pixels(rows), origins, strict=True)
    ]
    return section(
        f"How {manifest.source} generated the images",
        _curves(read_metrics(folder / METRICS)),
        _pictures(folder / LOGS / FOLDER),
        tag("h3", "Generated images, from the first to the last"),
        tag("ul", *made, class_="gallery"),
    )


def _curves(metrics: Sequence[dict[str, Any]]) -> Html:
    """Return a chart for each metric: first the signs of a collapse, then the terms of the loss."""
    names = [name for name in dict.fromkeys(name for row in metrics for name in row) if name not in HIDDEN]
    charts = []
    for name in sorted(names, key=[*WORDS, *names].index):
        points = [(row["step"], row[name]) for row in metrics if math.isfinite(row.get(name, math.nan))]
        if points:
            words = f"{name} over steps: from {points[0][1]:.3g} to {points[-1][1]:.3g}"
            chart = lines(name, words, {name: points}, {name: 0})
            charts.append(figure(WORDS.get(name, f"{name}, a term of the loss"), chart))
    return tag("div", *charts, class_="charts three") if charts else Html()


def _pictures(folder: Path) -> Html:
    """Return the pictures that were kept during training, or a hint if there are none."""
    from PIL import Image, UnidentifiedImageError

    items = []
    for file in sorted(folder.glob("*.png"))[: PICTURES + 1]:
        try:
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, UnidentifiedImageError):
            continue
        words = f"step {int(number):,}" if (number := file.name.partition("-")[0]).isdecimal() else file.name
        shot = image_tag(pixels, max(pixels.shape[:2]) <= SIDE, words, side=SIDE)
        items.append(gallery_item(shot, words))
    if not items:
        hint = "dfkd generate --log pictures keeps images of the generator while it learns; they are shown here."
        return tag("p", hint, class_="note")
    return join((tag("h3", "Images while the generator learned"), tag("ul", *items, class_="gallery sheets")))
