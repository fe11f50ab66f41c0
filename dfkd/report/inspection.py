"""`dfkd inspect`: what is in a selection, on the terminal and as a page with a gallery."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dfkd.config import InspectConfig
from dfkd.data.images.filter import read_scores
from dfkd.formats.manifest import HINT, Manifest
from dfkd.formats.overwrite import check_output
from dfkd.formats.shards import Shards
from dfkd.formats.verify import verify
from dfkd.report.charts import bar, figure, histogram
from dfkd.report.markup import Html, definitions, page_path, section, table, tag, write_page
from dfkd.system.checksums import check_file
from dfkd.system.console import answer, say
from dfkd.system.errors import RequestError
from dfkd.system.text import aligned, visible

QUANTILES = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}
SHOWN_CLASSES = 20
"""Classes whose bars and images are shown; a page of a thousand classes could not be read."""
IMAGES_A_CLASS = 12
THUMBNAIL = 96
"""The side of a larger image in the gallery, in pixels."""
UNSCORED = ("unreadable", "non_finite")
"""Reasons of pool images whose scores mean nothing."""
SCORES = ("confidence", "entropy")
GALLERY_NOTE = (
    f"Up to {IMAGES_A_CLASS} images of a class, from the least to the most confident. Below each: the teacher's "
    "confidence, the entropy of its prediction (0: sure of one class, 1: all alike), and the classes that are kept."
)


@dataclass(frozen=True)
class Contents:
    """A selection's columns of scores, and the same two scores of the pool it was taken from (None without a pool)."""

    shards: Shards
    selected: Mapping[str, Float[np.ndarray, " images"]]
    pool: Mapping[str, Float[np.ndarray, " pool"]] | None
    prediction: Int[np.ndarray, " images"]
    kept: Bool[np.ndarray, "images classes"]

    @property
    def per_class(self) -> list[int]:
        """Images of every predicted class."""
        return np.bincount(self.prediction, minlength=self.kept.shape[1]).tolist()

    @property
    def shown_classes(self) -> list[int]:
        """The classes with the most images, in their own order."""
        counts = self.per_class
        return sorted(sorted(range(len(counts)), key=lambda k: -counts[k])[:SHOWN_CLASSES])


def run(config: InspectConfig) -> None:
    """Print what a selection holds and write its page where `--out` says. Raises: RequestError where it is none.

    With `--verify`, print what was verified, and raise where anything in the folder is not what was written.
    """
    if config.verify:
        if config.out is not None:
            raise RequestError(f"--out {config.out} is for a selection's page; --verify makes none")
        answer(verify(Path(config.folder)))
        return
    path = None if config.out is None else page_path(config.out)
    if config.out is not None:
        check_output(config.out, "--out", (config.folder,))
    contents = read(Path(config.folder))
    answer(terminal_text(contents))
    if path is not None:
        write(path, config.folder, contents)
        say(f"wrote {path}")


def read(folder: Path) -> Contents:
    """Open a selection and read its scores. Raises: RequestError where it is none, or empty."""
    shards = Shards(folder)
    if len(shards) == 0:
        raise RequestError(f"{folder} holds no image; make the selection again")
    prediction, classes = shards.column("prediction"), shards.manifest.classes
    if not 0 <= prediction.min() <= prediction.max() < classes:
        raise RequestError(f"{folder} holds predictions outside its {classes} classes; make the selection again")
    return Contents(
        shards,
        {name: shards.column(name) for name in SCORES},
        _pool_scores(folder / "scores.parquet", shards.manifest),
        prediction,
        shards.column("kept_classes"),
    )


def terminal_text(contents: Contents) -> str:
    """Everything but the gallery, as aligned text."""
    manifest = contents.shards.manifest
    facts = _facts(contents)
    width = max(len(name) for name, _ in facts) + 2
    counts = contents.per_class
    bars = [[str(k), f"{counts[k]:,}", "#" * round(30 * counts[k] / max(counts))] for k in contents.shown_classes]
    reasons = [[reason, f"{n:,}"] for reason, n in manifest.reasons.items()]
    parts = [
        "\n".join(f"{name + ':':<{width}}{visible(value)}" for name, value in facts),
        aligned(["reason", "pool images"], reasons) if reasons else "",
        aligned(["scores", *QUANTILES], _quantiles(contents)),
        aligned(["class", "images", ""], bars, left=(0, 2)),
        _left_out(contents),
    ]
    return "\n\n".join(filter(None, parts))


def write(path: Path, folder: str, contents: Contents) -> None:
    """Write the page."""
    manifest, counts = contents.shards.manifest, contents.per_class
    reasons = manifest.reasons
    total = sum(reasons.values())
    body = [
        [k, tag("td", bar(counts[k] / max(counts)), class_="bar"), f"{counts[k]:,}", f"{counts[k] / sum(counts):.1%}"]
        for k in contents.shown_classes
    ]
    left_out = tag("p", _left_out(contents), class_="note") if _left_out(contents) else Html()
    write_page(
        path,
        f"Selection {Path(folder).resolve().name}",
        definitions(_facts(contents)),
        section(
            "What became of the pool",
            table(
                "Pool images by reason",
                ["reason", "images", "share"],
                [[reason, f"{n:,}", f"{n / total:.1%}"] for reason, n in reasons.items()],
            ),
        )
        if total
        else Html(),
        section("Scores", _histograms(contents), table("Quantiles", ["scores", *QUANTILES], _quantiles(contents))),
        section(
            "Predicted classes",
            left_out,
            table("Images of every class, by the teacher's prediction", ["class", "bar", "images", "share"], body),
        ),
        section("Gallery", tag("p", GALLERY_NOTE, class_="note"), *_gallery(contents)),
    )


def _facts(contents: Contents) -> list[tuple[str, str]]:
    manifest = contents.shards.manifest
    threshold, kept = manifest.threshold, contents.kept.sum(axis=1)
    image, kind = manifest.image, "encoded files" if contents.shards.encoded else "raw"
    options = manifest.content.options.table
    facts = [
        ("images", f"{len(contents.shards):,}"),
        ("image", f"{image.size} x {image.size} pixels, {image.channels} channels, {kind}"),
        ("teacher", manifest.teacher),
        ("options", ", ".join(f"{name} {v}" for name, v in options.items() if v is not None)),
        ("seed", str(manifest.content.seed)),
    ]
    if manifest.filter:
        before, after = read_scores(manifest.filter)
        unused = "" if "kernel" in manifest.filter else "; not kept"
        facts.append(
            ("filter", f"the teacher's Inception Score of the pool: {before:.2f}, {after:.2f} with it{unused}")
        )
    if threshold is not None:
        facts.append(("threshold", f"confidence at least {threshold:.4f}; it admits {manifest.admitted:,} images"))
    if manifest.unreadable:
        facts.append(("unreadable", f"{len(manifest.unreadable):,} pool images; the manifest names them"))
    if manifest.left_out:
        total = sum(sum(counts.values()) for counts in manifest.left_out.values())
        facts.append(("left out", f"{total:,} files that are no images; the manifest counts them by suffix"))
    facts.append(("kept classes", f"{kept.mean():.2f} of {contents.kept.shape[1]} an image, the mean"))
    return facts


def _quantiles(contents: Contents) -> list[list[str]]:
    sets = [("selected", contents.selected), *([("pool", contents.pool)] if contents.pool else [])]
    return [
        [f"{score}, {name}", *(f"{value:.3f}" for value in np.quantile(scores[score], [*QUANTILES.values()]))]
        for score in SCORES
        for name, scores in sets
    ]


def _left_out(contents: Contents) -> str:
    counts = contents.per_class
    empty = f"; {counts.count(0):,} have none" if 0 in counts else ""
    if len(counts) <= SHOWN_CLASSES:
        return ""
    return f"The {SHOWN_CLASSES} classes with the most images are shown, of {len(counts):,}{empty}."


def _histograms(contents: Contents) -> Html:
    charts = []
    threshold = contents.shards.manifest.threshold
    for score in SCORES:
        selected = _counts(contents.selected[score])
        pool = _counts(contents.pool[score]) if contents.pool else [0] * len(selected)
        mark = ("threshold", threshold) if score == "confidence" and threshold is not None else None
        drawn = histogram(f"Histogram of {score}", ("pool", pool), ("selected", selected), mark)
        charts.append(
            figure(f"{score.capitalize()}. Wide bars: the pool; narrow bars: selected; shares of each.", drawn)
        )
    return tag("div", *charts, class_="charts")


def _counts(values: Float[np.ndarray, " images"]) -> list[int]:
    return np.histogram(values, bins=20, range=(0, 1))[0].tolist()


def _gallery(contents: Contents) -> list[Html]:
    """Each shown class with images that are spread evenly over its range of confidence."""
    parts = []
    confidence, entropy = (contents.selected[name] for name in SCORES)
    origins = contents.shards.column("source")
    raw = not contents.shards.encoded
    for k in contents.shown_classes:
        rows = np.flatnonzero(contents.prediction == k)
        if len(rows) == 0:
            continue
        rows = rows[np.argsort(confidence[rows], kind="stable")]
        picked = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), IMAGES_A_CLASS)).round().astype(int))]
        items = []
        for row, pixels in zip(picked, contents.shards.pixels(picked), strict=True):
            kept = _kept(contents.kept[row])
            scores = f"{confidence[row]:.2f}, entropy {entropy[row]:.2f}"
            picture = tag(
                "img",
                src=_data_uri(pixels, raw),
                alt=f"predicted {k} with confidence {scores}: {origins[row]}",
                title=origins[row],
                class_="pixelated" if raw else None,
                loading="lazy",
            )
            caption = tag("figcaption", f"{scores}, keeps {kept}")
            items.append(tag("li", tag("figure", picture, caption)))
        heading = tag("h3", f"Class {k}, {len(rows):,} image{'s' if len(rows) > 1 else ''}")
        parts += [heading, tag("ul", *items, class_="gallery")]
    return parts


def _kept(mask: Bool[np.ndarray, " classes"], most: int = 6) -> str:
    kept = np.flatnonzero(mask).tolist()
    return "all" if len(kept) == len(mask) else ", ".join(map(str, kept[:most])) + (" ..." if len(kept) > most else "")


def _data_uri(pixels: UInt8[np.ndarray, "height width channels"], raw: bool) -> str:
    """An image within the page: small raw ones without loss, larger ones as thumbnails."""
    from PIL import Image

    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    file = io.BytesIO()
    if raw:
        image.save(file, "PNG")
    else:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.save(file, "JPEG", quality=85)
    return f"data:image/{'png' if raw else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


def _pool_scores(path: Path, manifest: Manifest) -> dict[str, Float[np.ndarray, " pool"]] | None:
    """The scores of all readable pool images; None where the samples do not come from a pool.

    Raises: RequestError where the file is not what was written.
    """
    if not path.exists():
        return None
    for written in manifest.beside:
        if written.name == path.name:
            check_file(path, written, HINT)
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    usable = ~pc.field("reason").cast("string").isin(UNSCORED)
    try:
        scores = pq.read_table(path, columns=list(SCORES), filters=usable)
        for name in SCORES:
            if not pa.types.is_floating(scores[name].type):
                raise ValueError(f"its {name} is {scores[name].type}, not numbers")
        return {name: scores[name].to_numpy().astype(np.float32) for name in SCORES} if len(scores) else None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise RequestError(f"{path} cannot be read ({error}); make the selection again") from None
