"""Junk: images that are of little use to a teacher, as found images often are. For the demo and the benchmarks.

Every public function draws `count` uint8 images [count, side, side, 3] at once from a NumPy generator. The same seed
gives the same images with one version of NumPy and Pillow.
"""

import io
import string
from functools import cache
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

Images: TypeAlias = UInt8[np.ndarray, "images side side 3"]
Photos: TypeAlias = UInt8[np.ndarray, "photos width width 3"]
"""Photos to cut from, of any number and size."""
Plane: TypeAlias = Float[np.ndarray, "images side side"]
LETTERS, ALL_CHARACTERS = string.ascii_letters, string.ascii_letters + string.digits + string.punctuation
PAGES, PAGE, GLYPH = 96, 128, 64
"""Number of text pages to cut from, side of a page, and side of a single glyph's mask, in pixels."""


# ---- helpers


def _plane(side: int) -> tuple[Float[np.ndarray, "side 1"], Float[np.ndarray, "1 side"]]:
    """Return the coordinates of pixels from -1 to 1: down, right."""
    line = (2 * np.arange(side, dtype=np.float32) + 1) / side - 1
    return line[:, None], line[None]


def _each(values: np.ndarray) -> np.ndarray:
    """Reshape one value per image, so that it broadcasts over planes."""
    return values.astype(np.float32)[:, None, None]


def _colors(rng: np.random.Generator, count: int) -> Float[np.ndarray, "images 1 1 3"]:
    """Draw random colors, a third of them gray, as in most pages and windows."""
    colors = rng.random((count, 1, 1, 3), dtype=np.float32) * 255
    gray = rng.random(count) < 1 / 3
    colors[gray] = colors[gray, :, :, :1]
    return colors


def _blend(
    mask: Plane, of: Float[np.ndarray, "images 1 1 3"], on: Float[np.ndarray, "images #side #side 3"]
) -> Float[np.ndarray, "images side side 3"]:
    return on + mask[..., None] * (of - on)


def _pixels(values: Float[np.ndarray, "images side side 3"]) -> Images:
    return np.rint(values.clip(0, 255)).astype(np.uint8)


def _sampled(
    stack: UInt8[np.ndarray, "sheets height width *channels"],
    which: Int[np.ndarray, " images"],
    down: Plane,
    right: Plane,
) -> Float[np.ndarray, "images side side *channels"]:
    """Sample one sheet per image bilinearly, at coordinates in pixels. Outside a sheet, its edge is repeated."""
    height, width = stack.shape[1:3]
    down, right = down.clip(0, height - 1), right.clip(0, width - 1)
    top, left = down.astype(np.int64).clip(0, height - 2), right.astype(np.int64).clip(0, width - 2)
    rows, extra = which[:, None, None], (None,) * (stack.ndim - 3)
    y = (down - top.astype(np.float32))[(..., *extra)]
    x = (right - left.astype(np.float32))[(..., *extra)]
    above = stack[rows, top, left] * (1 - x) + stack[rows, top, left + 1] * x
    below = stack[rows, top + 1, left] * (1 - x) + stack[rows, top + 1, left + 1] * x
    return (above * (1 - y) + below * y).astype(np.float32)


def _turned(
    side: int, angle: np.ndarray, scale: np.ndarray, down: np.ndarray, right: np.ndarray
) -> tuple[Plane, Plane]:
    """Return the coordinates of a rotated window per image, around a center.

    `scale` is source pixels per image pixel.
    """
    y, x = _plane(side)
    half, cos, sin = _each(scale * side / 2), _each(np.cos(angle)), _each(np.sin(angle))
    return _each(down) + half * (cos * y + sin * x), _each(right) + half * (cos * x - sin * y)


# ---- text and glyphs


def _word(rng: np.random.Generator, characters: str) -> str:
    return "".join(rng.choice(list(characters), rng.integers(1, 11)))


@cache
def _pages(characters: str) -> UInt8[np.ndarray, "pages page page"]:
    """Draw masks of pages with random words, in sizes from 7 to 30 pixels."""
    rng, pages = np.random.default_rng(len(characters)), []
    for _ in range(PAGES):
        size = int(np.exp(rng.uniform(np.log(7), np.log(30))))
        lines = (" ".join(_word(rng, characters) for _ in range(8)) for _ in range(PAGE // size + 1))
        page = Image.new("L", (PAGE, PAGE))
        text = "\n".join(lines)
        ImageDraw.Draw(page).multiline_text((-2, -2), text, 255, ImageFont.load_default(size), spacing=size // 4)
        pages.append(np.asarray(page))
    return np.stack(pages)


@cache
def _glyphs(characters: str) -> UInt8[np.ndarray, "glyphs glyph glyph"]:
    """Draw masks of single characters, centered."""
    font, glyphs = ImageFont.load_default(GLYPH * 0.8), []
    for character in characters:
        glyph = Image.new("L", (GLYPH, GLYPH))
        ImageDraw.Draw(glyph).text((GLYPH / 2, GLYPH / 2), character, 255, font, anchor="mm")
        glyphs.append(np.asarray(glyph))
    return np.stack(glyphs)


def text(rng: np.random.Generator, count: int, side: int, characters: str = ALL_CHARACTERS) -> Images:
    """Draw parts of pages with random words, most of them level and dark on light."""
    pages = _pages(characters)
    angle = rng.normal(0, np.where(rng.random(count) < 0.8, 0.02, 0.4))
    scale = np.exp(rng.uniform(np.log(0.6), np.log(1.6), count))
    room = (scale * side / 2).clip(max=PAGE / 2)
    down, right = (rng.uniform(room, PAGE - room) for _ in range(2))
    mask = _sampled(pages, rng.integers(len(pages), size=count), *_turned(side, angle, scale, down, right)) / 255
    ink, paper = _colors(rng, count), _colors(rng, count)
    usual = rng.random(count) < 0.6
    ink[usual], paper[usual] = ink[usual] / 3, 255 - paper[usual] / 4
    return _pixels(_blend(mask, ink, paper))


def glyph(rng: np.random.Generator, count: int, side: int, characters: str = ALL_CHARACTERS) -> Images:
    """Draw one character per image, on a plain ground or on a gradient."""
    glyphs = _glyphs(characters)
    angle = rng.normal(0, 0.2, count)
    scale = GLYPH / side * np.exp(rng.uniform(np.log(0.7), np.log(1.8), count))
    down, right = (GLYPH / 2 + rng.normal(0, 4, count) for _ in range(2))
    mask = _sampled(glyphs, rng.integers(len(glyphs), size=count), *_turned(side, angle, scale, down, right)) / 255
    ground = np.broadcast_to(_colors(rng, count), (count, side, side, 3)).copy()
    shaded = np.flatnonzero(rng.random(count) < 0.4)
    ground[shaded] = gradient(rng, len(shaded), side)
    return _pixels(_blend(mask, _colors(rng, count), ground))


# ---- layouts, gradients, noise


def _box(rng: np.random.Generator, count: int, side: int, least: float) -> tuple[np.ndarray, ...]:
    """Draw the top, bottom, left and right of one box per image, in pixels."""
    size = rng.uniform(least, 0.9, (2, count)) * side
    near = rng.random((2, count)) * (side - size)
    edges = (near[0], near[0] + size[0], near[1], near[1] + size[1])
    return tuple(_each(np.rint(edge)) for edge in edges)


def _within(side: int, top: np.ndarray, bottom: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    line = np.arange(side)
    return (top <= line[:, None]) & (line[:, None] < bottom) & (left <= line) & (line < right)


def screen(rng: np.random.Generator, count: int, side: int) -> Images:
    """Draw layouts as on a screen: a window, bars, panels, and lines of dashes for text."""
    out = np.broadcast_to(255 - _colors(rng, count) / 3, (count, side, side, 3)).copy()
    dark = rng.random(count) < 0.25
    out[dark] = 255 - out[dark]
    whole, nothing = np.full(count, side), np.zeros(count)
    bar = rng.uniform(0, 0.2, count) * side
    column = np.where(rng.random(count) < 0.5, rng.uniform(0, 0.35, count) * side, 0)
    edges = (nothing, bar, nothing, whole), (bar, whole, nothing, column)
    parts = [tuple(_each(np.rint(edge)) for edge in box) for box in edges]
    parts += [_box(rng, count, side, 0.1) for _ in range(4)]
    for box in parts:
        shown = _within(side, *box) & (rng.random(count) < 0.8)[:, None, None]
        out = _blend(shown.astype(np.float32), _colors(rng, count), out)
    for _ in range(2):
        box, pitch = _box(rng, count, side, 0.3), _each(rng.integers(2, 6, count))
        dashes = rng.random((count, side, side)) < _each(rng.uniform(0.4, 0.95, count))
        lines = (np.arange(side)[:, None] - box[0]) % pitch < np.maximum(pitch // 2, 1)
        shown = _within(side, *box) & lines & dashes
        out = _blend(shown.astype(np.float32), _colors(rng, count), out)
    return _pixels(out)


def gradient(rng: np.random.Generator, count: int, side: int) -> Images:
    """Draw linear, radial and angular gradients between three colors. Some have steps, some are of one color."""
    y, x = _plane(side)
    y, x = y - _each(rng.uniform(-0.7, 0.7, count)), x - _each(rng.uniform(-0.7, 0.7, count))
    angle = _each(rng.uniform(0, 2 * np.pi, count))
    linear = (np.cos(angle) * x + np.sin(angle) * y) / 2 + 0.5
    angular = (np.arctan2(y, x) + angle) / (2 * np.pi) % 1
    kinds = np.stack([linear, np.hypot(x, y) / 1.5, angular])
    value = kinds[rng.integers(3, size=count), np.arange(count)].clip(0, 1)
    steps = _each(rng.integers(2, 9, count))
    value = np.where(_each(rng.random(count)) < 0.3, np.floor(value * steps) / steps, value)
    value *= _each(rng.random(count) < 0.9)  # the rest is one color
    first, middle, last = (_colors(rng, count) for _ in range(3))
    turn = _each(rng.uniform(0.2, 0.8, count))
    early, late = (value / turn).clip(0, 1), ((value - turn) / (1 - turn)).clip(0, 1)
    return _pixels(first + early[..., None] * (middle - first) + late[..., None] * (last - middle))


def _white(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    return rng.normal(0, 1, (count, side, side, 3)).astype(np.float32)


def _even(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    return rng.uniform(-1.7, 1.7, (count, side, side, 3)).astype(np.float32)


def _rare(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    """Draw salt-and-pepper noise."""
    share = rng.uniform(0.02, 0.4, (count, 1, 1, 1))
    return np.sign(rng.normal(size=(count, side, side, 1))) * 3 * (rng.random((count, side, side, 1)) < share)


def _spectrum(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    """Draw noise whose amplitude falls with a power of the frequency, from nearly white to clouds."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1 / side
    power = rng.uniform(0.3, 2.5, (count, 1, 1, 1))
    waves = np.fft.rfft2(_white(rng, count, side), axes=(1, 2)) * frequency[None, :, :, None] ** -power
    clouds = np.fft.irfft2(waves, s=(side, side), axes=(1, 2))
    return clouds / clouds.std(axis=(1, 2, 3), keepdims=True)


def _waves(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    """Draw one or two overlaid sine gratings per image. Half of the images are cut to stripes and checkers."""
    y, x = _plane(side)
    total = np.ones((count, side, side), np.float32)
    for one in range(2):
        angle, frequency = rng.uniform(0, np.pi, count), rng.uniform(2, side * 0.7, count)
        wave = np.cos(_each(np.cos(angle) * frequency) * x + _each(np.sin(angle) * frequency) * y)
        total = np.where(_each(rng.random(count) < (1, 0.5)[one]), total * wave, total)
    total = np.where(_each(rng.random(count) < 0.5), np.sign(total), total)
    return total[..., None] * rng.normal(0, 1.2, (count, 1, 1, 3))


def noise(rng: np.random.Generator, count: int, side: int) -> Images:
    """Draw five kinds of noise around a color, in color or gray: white, uniform, salt and pepper, clouds, waves."""
    out, kind = np.empty((count, side, side, 3), np.float32), rng.integers(5, size=count)
    for number, make in enumerate((_white, _even, _rare, _spectrum, _waves)):
        rows = np.flatnonzero(kind == number)
        out[rows] = make(rng, len(rows), side)
    gray = rng.random(count) < 0.3
    out[gray] = out[gray, :, :, :1]
    return _pixels(_colors(rng, count) + out * rng.uniform(10, 110, (count, 1, 1, 1)).astype(np.float32))


# ---- from photos


def texture(photos: Photos, rng: np.random.Generator, count: int, side: int) -> Images:
    """Draw small windows of photos, enlarged or repeated as mirrored tiles."""
    which, repeats = rng.integers(len(photos), size=count), _each(rng.integers(1, 5, count))
    size = photos.shape[1]
    window = rng.uniform(0.15, 0.4, count) * size
    corner = [_each(rng.uniform(0, size - 1 - window)) for _ in range(2)]
    phase = np.arange(side, dtype=np.float32) / side * repeats  # [count, 1, side]
    mirrored = _each(window) * (1 - np.abs(1 - phase % 2))
    down, right = corner[0] + mirrored.swapaxes(1, 2), corner[1] + mirrored
    shape = (count, side, side)
    return _pixels(_sampled(photos, which, np.broadcast_to(down, shape), np.broadcast_to(right, shape)))


def recompressed(photos: Images, rng: np.random.Generator) -> Images:
    """Return the photos after compression as JPEG of low quality."""
    out = np.empty_like(photos)
    for i, quality in enumerate(rng.integers(10, 70, len(photos))):
        file = io.BytesIO()
        Image.fromarray(photos[i]).save(file, "JPEG", quality=int(quality))
        out[i] = np.asarray(Image.open(file))
    return out


def shifted(photos: Images, rng: np.random.Generator) -> Images:
    """Return the photos shifted by up to a tenth of their side and slightly enlarged. Half of them are mirrored."""
    count, side = photos.shape[:2]
    scale, center = rng.uniform(0.9, 1.0, (count,)), np.full(count, (side - 1) / 2)
    down, right = (center + rng.uniform(-0.1, 0.1, count) * side for _ in range(2))
    moved = _pixels(_sampled(photos, np.arange(count), *_turned(side, np.zeros(count), scale, down, right)))
    mirrored = rng.random(count) < 0.5
    moved[mirrored] = moved[mirrored, :, ::-1]
    return moved


def recolored(photos: Images, rng: np.random.Generator) -> Images:
    """Return the photos in other colors. Each channel gets a gain, an offset and a power."""
    shape = (len(photos), 1, 1, 3)
    power = np.exp(rng.normal(0, 0.3, shape)).astype(np.float32)
    gain, offset = rng.normal(1, 0.2, shape).astype(np.float32), rng.normal(0, 20, shape).astype(np.float32)
    return _pixels((photos.astype(np.float32) / 255) ** power * 255 * gain + offset)
