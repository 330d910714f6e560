"""Batch sources: what a batch holds depends on seed, epoch and number alone, and any batch is reached at once.

An epoch is a permutation of the examples by (seed, epoch), cut into batches of one size; what is left over at its end
comes in another epoch. Augmentation, and whatever a user's Dataset draws from torch, numpy or `random`, is seeded for
each image by its place in the batch. Several ranks cut each batch into equal parts, so the batch size is that of all
ranks together, and an image is changed in the same way whichever rank has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from builder.data.augment import Augmentation
from builder.data.datasets import DatasetBatches, LoaderBatches
from builder.data.images import Pixels, normalised
from builder.data.order import Ordered
from builder.training import Batch, Ranks
from edge_runtime.errors import InputError

__all__ = ["ImageBatches", "Source", "source_of"]


class Source(Protocol):
    """A `BatchSource` that knows its length."""

    def __len__(self) -> int:
        """Batches of one epoch."""

    def __call__(self, epoch: int, first: int) -> Iterable[Batch]:
        """The batches of an epoch from number `first` on."""


def source_of(
    data: Any,
    batch_size: int,
    *,
    seed: int = 0,
    ranks: Ranks | None = None,
    augmentation: Augmentation | None = None,
    classes: int | None = None,
    device: str = "cpu",
) -> Source:
    """The batch source of whatever holds examples.

    Args:
        data: an `ImageSet` or `ImageFolder`; a map-style Dataset whose items are a float32 image [C, H, W] as the
            network takes it, or a pair of it and a label; a DataLoader of batches of the same.
        batch_size: images of one batch, over all ranks; of a DataLoader its own counts.
        seed: of the order and of everything random in the examples.
        ranks: this process of how many.
        augmentation: for sets of pixels only; a Dataset augments by itself.
        classes: labels must be below this; None checks nothing.
        device: on which sets of pixels are augmented and normalised; a Dataset gives its images on the CPU.

    Raises:
        InputError: the data is empty or not such a thing.
        UsageError: the batch size is not a multiple of the number of ranks, or leaves one image to each.
    """
    ranks = ranks or Ranks()
    if isinstance(data, DataLoader):
        if _is_plain(data):
            collate = data.collate_fn
            return DatasetBatches(
                data.dataset, data.batch_size, seed, ranks, classes, workers=data.num_workers, collate=collate
            )
        return LoaderBatches(data, seed, ranks, classes)
    if hasattr(data, "pixels"):
        return ImageBatches(data, batch_size, seed, ranks, augmentation, device)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return DatasetBatches(data, batch_size, seed, ranks, classes)
    raise InputError(
        f"a {type(data).__name__} is not a set of images",
        hint="give a map-style Dataset, a DataLoader or an ImageFolder",
    )


class ImageBatches(Ordered):
    """Batches of a set of pixels, augmented and normalised: (float32 [n, 3, H, W], labels int64 [n] or None)."""

    def __init__(
        self,
        images: Pixels,
        batch_size: int,
        seed: int = 0,
        ranks: Ranks | None = None,
        augmentation: Augmentation | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(len(images), batch_size, seed, ranks or Ranks())
        self._images, self._augmentation, self._device = images, augmentation, device

    def __call__(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on."""
        images = self._images
        for number in range(first, len(self)):
            chosen = self.chosen(epoch, number)
            pixels = images.pixels(chosen).to(self._device)
            if self._augmentation is not None:
                rng = np.random.default_rng(self.seeds(epoch, number))
                pixels = self._augmentation.apply(pixels, rng, of=self._size, part=self.part)
            labels = None if images.labels is None else torch.from_numpy(images.labels[chosen])
            yield normalised(pixels, images.mean, images.std), labels


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Whether a loader only cuts an ordinary order of a map-style Dataset into batches, which we do ourselves."""
    return (
        not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and type(loader.sampler) in (RandomSampler, SequentialSampler)
    )
