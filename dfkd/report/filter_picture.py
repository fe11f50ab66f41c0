"""Picture of a pool filter: its kernel and its frequency response."""

import numpy as np
from jaxtyping import Float, UInt8

from dfkd.data.images.filter_record import read_arrays
from dfkd.formats.manifest import Manifest
from dfkd.report.charts import figure, legend, lines
from dfkd.report.image_tags import data_uri, weight_colors
from dfkd.report.markup import Html, section, tag

CHANNELS = {1: ("gray",), 3: ("red", "green", "blue")}
RESOLUTION = 32
"""Frequencies along a side at which the response is computed."""


def filter_section(manifest: Manifest, examples: Html | None) -> Html:
    """Return the section about the filter. It is empty if the images went through no filter."""
    found = read_arrays(manifest.filter, manifest.image.channels)
    if found is None:
        return Html()
    kernel, _ = found
    names = CHANNELS[manifest.image.channels]
    styles = dict(zip(names, {1: (7,), 3: (1, 2, 0)}[len(names)], strict=True))
    gains = {name: response(kernel[k, k]) for k, name in enumerate(names)}
    series = {name: [(100 * f, g) for f, g in curve] for name, curve in gains.items()}
    words = "; ".join(
        f"{name}: {curve[0][1]:.2f} at 0, {curve[-1][1]:.2f} at the highest" for name, curve in gains.items()
    )
    between = " Rows: from a channel; columns: to a channel."
    picture = tag("img", src=data_uri(drawn(kernel), True), alt="the filter's kernel", class_="pixelated kernel")
    return section(
        "Filter",
        tag(
            "div",
            figure(f"The kernel: blue adds, orange subtracts.{'' if len(names) == 1 else between}", picture),
            figure(
                "Gain over frequency, mean over directions. 100 % is the highest frequency.",
                lines("Frequency response", words, series, styles),
                legend(styles),
            ),
            class_="charts",
        ),
        examples or Html(),
    )


def response(kernel: Float[np.ndarray, "size size"]) -> list[tuple[float, float]]:
    """Return the gain at each frequency, averaged over directions. Frequencies are shares of the highest one."""
    gain = np.abs(np.fft.fft2(kernel, (RESOLUTION, RESOLUTION)))
    one = np.fft.fftfreq(RESOLUTION) * 2
    away = np.hypot(one[:, None], one[None, :])
    rings = np.rint(away * RESOLUTION / 2).astype(int)
    last = RESOLUTION // 2
    return [(ring / last, float(gain[rings == ring].mean())) for ring in range(last + 1)]


def drawn(kernel: Float[np.ndarray, "to from size size"]) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the kernels side by side: white is 0, blue positive, orange negative, scaled to the largest weight."""
    channels, size = kernel.shape[0], kernel.shape[-1]
    colors = weight_colors((kernel / max(float(np.abs(kernel).max()), 1e-12))[..., None])
    sheet = np.full((channels * (size + 1) - 1, channels * (size + 1) - 1, 3), 128, np.uint8)
    for to in range(channels):
        for source in range(channels):
            top, left = source * (size + 1), to * (size + 1)
            sheet[top : top + size, left : left + size] = colors[to, source]
    return sheet
