"""Which examples are in a batch: a function of seed, epoch and number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from builder.training import Ranks
from edge_runtime.errors import InputError, UsageError

__all__ = ["Ordered"]


class Ordered:
    """The order of the examples, and the part of each batch that belongs to this rank."""

    def __init__(self, count: int, batch_size: int, seed: int, ranks: Ranks) -> None:
        if count == 0:
            raise InputError("the set of images is empty", hint="check the data folder and the choice of classes")
        self._count, self._size, self._seed, self._ranks = count, min(batch_size, count), seed, ranks
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, np.int64))
        if self._size % ranks.world:
            raise UsageError(
                f"batches of {self._size} images cannot be cut into {ranks.world} equal parts",
                hint="choose a batch size that is a multiple of the number of processes",
            )
        if self._size == ranks.world:  # a BN layer has no variance over one image
            raise UsageError(
                f"batches of {self._size} images leave 1 image to each process, of {count} in all",
                hint="choose a batch size of at least 2 images for each process, and give more images",
            )

    def __len__(self) -> int:
        return self._count // self._size

    def chosen(self, epoch: int, number: int) -> npt.NDArray[np.int64]:
        """Indices of this rank's part of a batch."""
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self._seed, epoch)).permutation(self._count)
        start = number * self._size
        return self._order[1][start : start + self._size][self.part]

    @property
    def part(self) -> slice:
        """Places of this rank's images in the batch of all ranks."""
        count = self._size // self._ranks.world
        return slice(self._ranks.rank * count, (self._ranks.rank + 1) * count)

    def seeds(self, epoch: int, number: int) -> tuple[int, ...]:
        """Of what is random in a batch; the same on all ranks."""
        return self._seed, epoch, number
