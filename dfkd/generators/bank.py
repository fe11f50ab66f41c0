"""Images that were made and are kept, and what the methods share that keep them."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dfkd.generators.base import Method, Stateful, Task, quantize
from dfkd.system.errors import RequestError


class Bank:
    """Images as pixels on the processor, in the order in which they came, with the class each was made for.

    It is part of its run's checkpoint and of nothing else: another run's images cannot slip in. It only grows: in
    memory a byte a pixel and channel.
    """

    def __init__(self, size: int, channels: int) -> None:
        self._pixels: list[UInt8[Tensor, "_ size size channels"]] = [
            torch.empty(0, size, size, channels, dtype=torch.uint8)
        ]
        self._labels = [torch.empty(0, dtype=torch.int64)]

    def __len__(self) -> int:
        return sum(map(len, self._labels))

    def add(self, images: Float[Tensor, "batch channels size size"], labels: Int[Tensor, " batch"]) -> None:
        """Keep a batch of images in [0, 1]."""
        self._pixels.append(quantize(images).cpu().contiguous())
        self._labels.append(labels.to("cpu", copy=True))  # a method may write its next batch's over them

    @property
    def pixels(self) -> UInt8[Tensor, "images size size channels"]:
        """All images."""
        self._pixels = [torch.cat(self._pixels)] if len(self._pixels) > 1 else self._pixels
        return self._pixels[0]

    @property
    def labels(self) -> Int[Tensor, " images"]:
        """The class that every image was made for."""
        self._labels = [torch.cat(self._labels)] if len(self._labels) > 1 else self._labels
        return self._labels[0]

    def state_dict(self) -> dict[str, Tensor]:
        """All images and their classes."""
        return {"pixels": self.pixels, "labels": self.labels}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._pixels, self._labels = [state["pixels"]], [state["labels"]]


class BankMethod(Method):
    """Images come in batches, `per_batch` updates each, into a bank from which the student learns.

    Subclasses call `keep` in `update` when a batch is complete.
    """

    def __init__(self, task: Task, *, per_batch: int) -> None:
        super().__init__(task)
        self.bank = Bank(task.size, task.channels)
        self._per_batch = self.first = per_batch

    def keep(self, images: Float[Tensor, "batch channels size size"], labels: Int[Tensor, " batch"]) -> None:
        """Put a complete batch into the bank. Raises: RequestError where an image is not finite."""
        if not images.isfinite().all():
            name = type(self).__name__.lower()
            raise RequestError(
                f"images of {name} are no longer finite after {self.updates:,} updates; the last checkpoint before, if "
                f"any, is kept; start again with a lower rate: {name}:lr=..."
            )
        self.bank.add(images, labels)

    def sample(self, count: int, random: torch.Generator) -> Float[Tensor, "count channels size size"]:
        """Images of the bank, drawn with replacement."""
        rows = torch.randint(len(self.bank), (count,), generator=random, device=random.device)
        return self._as_images(self.bank.pixels[rows.cpu()])

    def images(self, start: int, count: int) -> Float[Tensor, "count channels size size"]:
        """Images of the bank in the order in which they were made. Raises: RequestError where it has not so many."""
        if start + count > len(self.bank):
            raise RequestError(f"{len(self.bank):,} images were made, {start + count:,} are wanted; take more steps")
        return self._as_images(self.bank.pixels[start : start + count])

    def available(self) -> int:
        """The images of the bank."""
        return len(self.bank)

    def updates_for(self, count: int) -> int:
        """A batch after another."""
        return -(-count // self.task.batch) * self._per_batch

    def parts(self) -> Mapping[str, Stateful]:
        """The bank."""
        return {"bank": self.bank}

    def _as_images(
        self, pixels: UInt8[Tensor, "batch size size channels"]
    ) -> Float[Tensor, "batch channels size size"]:
        return pixels.to(self.task.device).permute(0, 3, 1, 2).float() / 255
