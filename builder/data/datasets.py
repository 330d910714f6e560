"""Batch sources of what a user brings: any map-style Dataset, any DataLoader. Nothing of torchvision is needed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from builder.data.order import Ordered
from builder.training import Batch, Ranks
from edge_runtime.errors import InputError

__all__ = ["DatasetBatches", "LoaderBatches", "checked_batch"]

Collate = Callable[[list[Any]], Any]


class DatasetBatches(Ordered):
    """Batches of a map-style Dataset whose items are float32 images [C, H, W], or pairs of one and a label.

    Args:
        dataset: the examples.
        batch_size: images of one batch, over all ranks.
        seed: of the order, and of what the Dataset draws from torch's, numpy's and Python's own generators.
        ranks: this process of how many.
        classes: labels must be below this; None checks nothing.
        workers: processes that prepare batches ahead; 0 prepares them when they are needed.
        collate: items to batch; None stacks them.
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        batch_size: int,
        seed: int = 0,
        ranks: Ranks | None = None,
        classes: int | None = None,
        *,
        workers: int = 0,
        collate: Collate | None = None,
    ) -> None:
        super().__init__(len(dataset), batch_size, seed, ranks or Ranks())
        self._dataset, self._classes, self._workers, self._collate = dataset, classes, workers, collate or _stacked

    def __call__(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on."""
        numbers = range(first, len(self))
        if not self._workers:
            return (self.batch(epoch, number) for number in numbers)
        # Without a generator of its own the loader draws from torch's, whose state belongs to the training.
        generator = torch.Generator().manual_seed(_number((self._seed, epoch)))
        return iter(
            DataLoader(
                _Epoch(self, epoch), batch_size=None, sampler=numbers, num_workers=self._workers, generator=generator
            )
        )

    def batch(self, epoch: int, number: int) -> Batch:
        """This rank's part of one batch. Raises `InputError` for an item that cannot be used."""
        seeds, items = self.seeds(epoch, number), []
        with _generators_kept():
            for place, index in enumerate(self.chosen(epoch, number), start=self.part.start):
                items.append(self._item(int(index), (*seeds, place)))
            _check_shapes(items)
            _seed((*seeds, self._size + self._ranks.rank))
            collated = self._collate(items)
        return checked_batch(collated, self._classes)

    def _item(self, index: int, seeds: tuple[int, ...]) -> Any:
        _seed(seeds)
        try:
            item = self._dataset[index]
        except Exception as error:  # whatever the user's own code raises
            raise InputError(f"example {index} of the data set fails: {type(error).__name__}: {error}") from error
        if not isinstance(_image_of(item), Tensor):
            raise InputError(
                f"example {index} of the data set is a {type(_image_of(item)).__name__}, not an image tensor",
                hint="give a float32 tensor [C, H, W] as the network takes it, or a pair of it and a label",
            )
        return item


class LoaderBatches:
    """Batches of a DataLoader that has its own sampler, or streams: it keeps its order.

    Its generator is seeded for each epoch, so that a loader that draws from nothing else repeats itself; going on in
    the middle of an epoch reads and drops what came before. Ranks take turns.
    """

    def __init__(
        self, loader: DataLoader[Any], seed: int = 0, ranks: Ranks | None = None, classes: int | None = None
    ) -> None:
        self._loader, self._seed, self._ranks, self._classes = loader, seed, ranks or Ranks(), classes
        try:
            self._count = len(loader)
        except TypeError as error:
            raise InputError("the DataLoader does not know its length", hint="give its Dataset a __len__") from error

    def __len__(self) -> int:
        return self._count // self._ranks.world

    def __call__(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on."""
        ranks, stream = self._ranks, None
        for number in range(len(self) * ranks.world):
            with _generators_kept():
                _seed((self._seed, epoch, number))
                if stream is None:
                    if self._loader.generator is not None:
                        self._loader.generator.manual_seed(_number((self._seed, epoch)))
                    stream = iter(self._loader)
                batch = next(stream, None)  # a sampler draws its order when the first batch is asked for
            if batch is None:
                return
            if number // ranks.world >= first and number % ranks.world == ranks.rank:
                yield checked_batch(batch, self._classes)


class _Epoch(Dataset[Batch]):
    """One epoch, batch by batch, for the worker processes of a DataLoader."""

    def __init__(self, source: DatasetBatches, epoch: int) -> None:
        self._source, self._epoch = source, epoch

    def __getitem__(self, number: int) -> Batch:
        return self._source.batch(self._epoch, number)


def checked_batch(batch: Any, classes: int | None = None) -> Batch:
    """Images and labels of a batch of any customary form. Raises `InputError` where they cannot be used."""
    images, labels = (batch[0], batch[1]) if isinstance(batch, (tuple, list)) and len(batch) > 1 else (batch, None)
    images = images[0] if isinstance(images, (tuple, list)) and len(images) == 1 else images
    if not isinstance(images, Tensor) or images.dtype != torch.float32:
        found = f"{images.dtype} tensor" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"the data set gives images as {found}, not float32", hint="convert and normalise them in the Dataset"
        )
    if labels is None:
        return images, None
    labels = torch.as_tensor(labels)
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise InputError(f"labels are one whole number per image, got {labels.dtype} {list(labels.shape)}")
    worst = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
    if worst < 0 or (classes is not None and worst >= classes):
        known = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise InputError(f"label {worst} of the data set is not a class of this model", hint=f"its classes are {known}")
    return images, labels.long()


def _check_shapes(items: list[Any]) -> None:
    shapes = {tuple(_image_of(item).shape) for item in items}
    if len(shapes) > 1:
        raise InputError(
            f"the images of the data set have different shapes: {' and '.join(map(str, sorted(shapes)[:3]))}",
            hint="resize or crop them to one size in the Dataset",
        )


def _image_of(item: Any) -> Any:
    return item[0] if isinstance(item, (tuple, list)) else item


def _stacked(items: list[Any]) -> Any:
    images = torch.stack([_image_of(item) for item in items])
    labels = [item[1] for item in items if isinstance(item, (tuple, list)) and len(item) > 1]
    return (images, torch.as_tensor(labels)) if labels else images


def _number(seeds: tuple[int, ...]) -> int:
    """One seed of several."""
    return int(np.random.SeedSequence(seeds).generate_state(1, np.uint32)[0])


def _seed(seeds: tuple[int, ...]) -> None:
    """Seed the global generators that a user's code may draw from: the CPU's, as a GPU's belong to the training."""
    number = _number(seeds)
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Put the generators that `_seed` changes back afterwards."""
    kept_python, kept_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(kept_python)
            np.random.set_state(kept_numpy)
