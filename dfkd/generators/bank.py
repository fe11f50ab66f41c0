"""Bank of generated images, and the base class of the methods that fill one."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dfkd.generators.base import Method, Stateful, Task, quantize
from dfkd.system.errors import RequestError


class Bank:
    """Generated images in CPU memory, in the order in which they were made, with the class that each was made for.

    The bank is saved only in the checkpoint of its run, so images of another run cannot enter. The bank only grows, by
    one byte per pixel and channel.
    """

    def __init__(self, size: int, channels: int) -> None:
        self._pixels: list[UInt8[Tensor, "_ size size channels"]] = [
            torch.empty(0, size, size, channels, dtype=torch.uint8)
        ]
        self._labels = [torch.empty(0, dtype=torch.int64)]

    def __len__(self) -> int:
        return sum(map(len, self._labels))

    def add(self, images: Float[Tensor, "batch channels size size"], labels: Int[Tensor, " batch"]) -> None:
        """Append a batch of images in [0, 1] and their classes, as uint8 pixels."""
        self._pixels.append(quantize(images).cpu().contiguous())
        self._labels.append(labels.to("cpu", copy=True))  # a method may reuse its tensor for the next batch

    @property
    def pixels(self) -> UInt8[Tensor, "images size size channels"]:
        """Pixels of all images."""
        self._pixels = [torch.cat(self._pixels)] if len(self._pixels) > 1 else self._pixels
        return self._pixels[0]

    @property
    def labels(self) -> Int[Tensor, " images"]:
        """Class that each image was made for."""
        self._labels = [torch.cat(self._labels)] if len(self._labels) > 1 else self._labels
        return self._labels[0]

    def state_dict(self) -> dict[str, Tensor]:
        """Return all images and their classes."""
        return {"pixels": self.pixels, "labels": self.labels}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the images and classes from `state_dict`."""
        self._pixels, self._labels = [state["pixels"]], [state["labels"]]


class BankMethod(Method):
    """Method that makes batches of images, `per_batch` updates each, and keeps them in a bank for the student.

    Subclasses call `keep` in `update` when a batch is complete.
    """

    def __init__(self, task: Task, *, per_batch: int) -> None:
        super().__init__(task)
        self.bank = Bank(task.size, task.channels)
        self._per_batch = self.first = per_batch

    def keep(self, images: Float[Tensor, "batch channels size size"], labels: Int[Tensor, " batch"]) -> None:
        """Add a complete batch to the bank. Raises: RequestError if a pixel is not finite."""
        if not images.isfinite().all():
            name = type(self).__name__.lower()
            raise RequestError(
                f"images of {name} are no longer finite after {self.updates:,} updates; the last checkpoint before, if "
                f"any, is kept; start again with a lower rate: {name}:lr=..."
            )
        self.bank.add(images, labels)

    def sample(self, count: int, random: torch.Generator) -> Float[Tensor, "count channels size size"]:
        """Draw images from the bank, with replacement."""
        rows = torch.randint(len(self.bank), (count,), generator=random, device=random.device)
        return self._as_images(self.bank.pixels[rows.cpu()])

    def images(self, start: int, count: int) -> Float[Tensor, "count channels size size"]:
        """Return images of the bank in the order in which they were made. Raises: RequestError if there are too few."""
        if start + count > len(self.bank):
            raise RequestError(f"{len(self.bank):,} images were made, {start + count:,} are wanted; give more --steps")
        return self._as_images(self.bank.pixels[start : start + count])

    def available(self) -> int:
        """Return the number of images in the bank."""
        return len(self.bank)

    def updates_for(self, count: int) -> int:
        """Return the number of updates that make enough whole batches for `count` images."""
        return -(-count // self.task.batch) * self._per_batch

    def parts(self) -> Mapping[str, Stateful]:
        """Return the bank, by name."""
        return {"bank": self.bank}

    def _as_images(
        self, pixels: UInt8[Tensor, "batch size size channels"]
    ) -> Float[Tensor, "batch channels size size"]:
        return pixels.to(self.task.device).permute(0, 3, 1, 2).float() / 255
