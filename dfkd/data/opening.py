"""Opening of the DATA that a request names, as one pool."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dfkd.data.images.frame import WHOLE, Frame
from dfkd.data.labels import ClassNames
from dfkd.data.locate import Data, GivenData, locate, member_of, paths_of, with_images
from dfkd.data.pool import Pool
from dfkd.system.console import say
from dfkd.system.errors import RequestError
from dfkd.system.portable import portable


def open_pool(
    specs: Sequence[GivenData],
    *,
    image_size: int | None,
    channels: int,
    workers: int | None = None,
    classes: str | None = None,
    own_names: Sequence[str] = (),
    bits: int | None = None,
    frame: Frame = WHOLE,
) -> Pool:
    """Return a pool of several DATA. Some of them may be opened already.

    `image_size` None stands for the pool's own size, if all images are raw and square. `classes` is a file with the
    names of a model's classes, by which labels are found. Without it, `own_names` are the names that the model itself
    has; they are used if they include all of the data's. `bits` is the number of bits in use of 16-bit gray images, of
    which the upper 8 are taken.

    Raises: RequestError if a DATA cannot be opened or is empty, or if the pool has no size of its own.
    """
    if not specs:
        raise RequestError("no DATA is given; name at least one")
    if channels not in (1, 3):
        raise RequestError(f"{channels} channels: images have 1 (gray) or 3 (RGB)")
    if image_size is not None and image_size < 1:
        raise RequestError(f"--image-size {image_size} is not a number of pixels above 0")
    found = with_images(specs, lambda one: locate(one) if isinstance(one, str) else one)
    data = [one for one in found if one is not None]
    texts = [spec if isinstance(spec, str) else spec.name for spec in specs]
    empty = [portable(Path(text).name) for text, one in zip(texts, found, strict=True) if one is None]
    _note_doubles([spec for spec in specs if isinstance(spec, str)])
    names = ClassNames(classes) if classes else None
    own = ClassNames.of_model(own_names) if own_names else None
    return Pool(data, image_size or _own_size(data), channels, workers, empty, names, bits, frame, own)


def _own_size(data: Sequence[Data]) -> int:
    """Return the side that all images share. Raises: RequestError if they share none."""
    sizes: dict[tuple[int, int], str] = {}
    for one in data:
        for name, reader in one.parts:
            if reader.shape is None:
                raise RequestError(f"{name!r} holds encoded images, of any size; give --image-size N")
            sizes.setdefault(reader.shape[:2], name)
    (height, width), *others = sizes
    if others or height != width:
        found = ", ".join(f"{width}x{height} ({name})" for (height, width), name in sizes.items())
        raise RequestError(f"the pool's images have no square size in common: {found}; give --image-size N")
    return height


def _note_doubles(specs: Sequence[str]) -> None:
    """Print a note on DATA that a pool contains more than once, also by way of links and parent folders."""
    given: Counter[tuple[Path, str]] = Counter()
    for text in specs:
        given.update((path.resolve(), member_of(text)) for path in paths_of(text) or [Path(text)])
    within = {(path, "") for path, _ in given if path.is_dir() and any((top, "") in given for top in path.parents)}
    doubles = [path for path, member in given if given[path, member] > 1 or (path, member) in within]
    if doubles:
        more = f" and {len(doubles) - 1} more" if len(doubles) > 1 else ""
        say(f"note: the data names {str(doubles[0])!r}{more} more than once; its images count more than once")
