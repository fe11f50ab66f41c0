"""Notes on how images are converted, printed once for each DATA and kind of conversion."""

from collections.abc import Iterable

from dfkd.data.images.decode import conversions
from dfkd.data.images.frame import Frame
from dfkd.data.locate import Data
from dfkd.system.console import say


class ConversionNotes:
    """Notes on the images of a pool, each printed once."""

    def __init__(self, image_size: int, channels: int, bits: int | None, frame: Frame) -> None:
        self._to, self._bits = (image_size, channels, frame), bits
        self._said: set[tuple[int, str]] = set()

    def on_shapes(self, data: Data, shapes: Iterable[tuple[int, int, int]], encoded: bool) -> None:
        """Print each kind of conversion that images of these shapes need."""
        others = ", and those of other sizes," if encoded else ""
        for shape in sorted(shapes):
            for kind, words in conversions(shape, *self._to).items():
                self._say(data, kind, f"{data.name}: {words.replace('images', 'images' + others)}")

    def on_bits(self, data: Data, largest: int | None) -> None:
        """Print how 16-bit images are converted, if `largest` is their largest value. They often use fewer bits."""
        if largest is None:
            return
        start = f"note: {data.name}:"
        if self._bits is not None:
            if largest >= 2**self._bits:
                more = f"values up to {largest} need more than --bits {self._bits}; they become white"
                self._say(data, "bits", f"{start} {more}")
            return
        dark = ""
        if largest < 32768:
            used = max(8, largest.bit_length())
            dark = f"; they come out dark: --bits {used} scales gray, or write them so that white is 65535"
        upper = f"of 16-bit images the upper 8 bits are taken; the largest value is {largest}{dark}"
        self._say(data, "bits", f"{start} {upper}")

    def _say(self, data: Data, kind: str, words: str) -> None:
        if (id(data), kind) not in self._said:
            self._said.add((id(data), kind))
            say(words)
