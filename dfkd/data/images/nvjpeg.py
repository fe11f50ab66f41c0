"""Decoding of JPEG files on a GPU by nvJPEG, through torchvision, for `--decoder nvjpeg`.

nvJPEG's pixels differ from those of libjpeg-turbo by a few levels. It decodes whole files, without DCT scaling. Pixels
return to main memory at the size of the input, so that everything behind the decoding stays as it is.
"""

import io
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Num, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from dfkd.config.stages.shared import Decoder
from dfkd.data.images.decode import Decoded
from dfkd.data.images.frame import WHOLE, Frame, View, Window, framed_view, windowed_view
from dfkd.data.images.jpeg import Plain
from dfkd.data.images.load import jpeg_header
from dfkd.system.errors import RequestError, first_line

_DEVICE = "cuda"
_END = b"\xff\xd9"
_PIXELS_AT_ONCE = 2**26
"""Largest number of pixels of files that are decoded together: 0.2 GB of the GPU's memory."""
_MIRRORED = {2: (-1,), 3: (-2, -1), 4: (-2,), 5: (), 6: (-1,), 7: (-2, -1), 8: (-2,)}
"""Axes along which an image is mirrored by its EXIF orientation. From 5 on, width and height were exchanged before."""


class Nvjpeg:
    """Decoder of batches of files on one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # on a stream of its own: a reading thread would otherwise wait for the networks' kernels
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(
        self,
        files: Sequence[object],
        size: int,
        channels: int,
        frame: Frame = WHOLE,
        windows: Sequence[Window | None] | None = None,
    ) -> list[Decoded | None]:
        """Return what `decode` does for each file, or None for a file that a CPU is to decode.

        These are files that are not JPEG, have other colors than gray or RGB, end early, or are refused by nvJPEG.
        """
        found: list[Decoded | None] = [None] * len(files)
        headers = {i: header for i, file in enumerate(files) if (header := _header(file))}
        with torch.cuda.stream(self._stream):
            for positions in _groups({i: image.width * image.height for i, (image, _) in headers.items()}):
                squares: dict[int, Tensor] = {}
                decoded = self._planes([files[i] for i in positions], channels)  # type: ignore[misc]
                for i, planes in zip(positions, decoded, strict=True):
                    if planes is not None:
                        upright, window = _upright(planes, headers[i][1]), None if windows is None else windows[i]
                        height, width = upright.shape[1:]
                        view = windowed_view(height, width, size, window) if window else None
                        view = view or framed_view(height, width, size, frame)
                        squares[i] = _square(upright[None], view, frame.interpolation)
                for i, pixels in zip(squares, _in_main_memory([*squares.values()]), strict=True):
                    found[i] = Decoded(pixels, _shape(*headers[i]))
        return found

    def check(self) -> None:
        """Decode a small file. Raises: RequestError if torchvision cannot do that on this GPU."""
        from PIL import Image

        file = io.BytesIO()
        Image.new("RGB", (32, 32)).save(file, "JPEG")
        try:
            decode_jpegs([file.getvalue()], 3, self._device)
        except Exception as error:
            raise RequestError(
                f"--decoder nvjpeg: torchvision cannot decode on the GPU ({first_line(error)}); leave it out"
            ) from None

    def _planes(self, files: Sequence[bytes], channels: int) -> list[UInt8[Tensor, "channels height width"] | None]:
        """Decode files, or return None for those that nvJPEG refuses. It refuses a list without naming the file."""
        try:
            return [*decode_jpegs(files, channels, self._device)]
        except RuntimeError:  # also of a GPU whose memory is full
            if len(files) == 1:
                return [None]
            half = len(files) // 2
            return self._planes(files[:half], channels) + self._planes(files[half:], channels)


def gpu_decoder(decoder: Decoder, device: torch.device, photographs: bool) -> Nvjpeg | None:
    """Return the decoder on the GPU that `--decoder` names, or None for that on the CPU.

    Raises: RequestError without a GPU, without nvJPEG in torchvision, and for images of up to 64 pixels.
    """
    if decoder == "cpu":
        return None
    if device.type != _DEVICE:
        raise RequestError(f"--decoder {decoder} needs a GPU, and the device is {device.type}; leave it out")
    if not photographs:
        raise RequestError(f"--decoder {decoder} is for images above 64 pixels; leave it out")
    found = Nvjpeg(device)
    found.check()
    return found


def decode_jpegs(
    files: Sequence[bytes], channels: int, device: torch.device
) -> list[UInt8[Tensor, "channels height width"]]:
    """Return the pixels of JPEG files on a device. Raises: RuntimeError if one of the files cannot be decoded."""
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    with warnings.catch_warnings():  # since torchvision 0.29, in favor of another package
        warnings.simplefilter("ignore", DeprecationWarning)
        return decode_jpeg(encoded, ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB, device)


def _header(file: object) -> tuple[Plain, int] | None:
    return jpeg_header(file) if isinstance(file, bytes) and file.endswith(_END) else None


def _groups(pixels: dict[int, int]) -> Iterator[list[int]]:
    """Yield positions of files with at most `_PIXELS_AT_ONCE` pixels together, or one larger file."""
    group: list[int] = []
    together = 0
    for i, own in pixels.items():
        if group and together + own > _PIXELS_AT_ONCE:
            yield group
            group, together = [], 0
        group.append(i)
        together += own
    if group:
        yield group


def _upright(planes: Num[Tensor, "channels rows columns"], orientation: int) -> Num[Tensor, "channels height width"]:
    if orientation == 1:
        return planes
    return (planes.transpose(-2, -1) if orientation > 4 else planes).flip(_MIRRORED[orientation])


def _square(
    planes: UInt8[Tensor, "1 channels height width"], view: View, mode: str
) -> UInt8[Tensor, "1 channels size size"]:
    """Resize in float32, since a GPU does not resize uint8."""
    values = planes[:, :, view.rows, view.columns].float()
    if values.shape[2:] != (view.height, view.width):
        values = interpolate(values, (view.height, view.width), mode=mode, antialias=True)
    return values[:, :, view.kept_rows, view.kept_columns].round().clamp(0, 255).byte()


def _in_main_memory(squares: list[Tensor]) -> Iterator[UInt8[np.ndarray, "height width channels"]]:
    if squares:
        yield from torch.cat(squares).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _shape(image: Plain, orientation: int) -> tuple[int, int, int]:
    height, width = (image.width, image.height) if orientation > 4 else (image.height, image.width)
    return height, width, 1 if image.mode == "L" else 3
