"""A folder of image files, read when they are needed and kept in memory while there is room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from builder.data.images import Indices, normalised
from edge_runtime.bundle import Preprocessing
from edge_runtime.errors import InputError
from edge_runtime.inputs import Listing, most_unreadable, read_image

__all__ = ["ImageFolder"]

CACHE_BYTES = 2**30
"""Decoded images are kept while all of them together take at most this."""


class ImageFolder:
    """Image files as a set of pixels of one size, RGB, resized as the runtime resizes frames.

    A file that cannot be read is counted in `skipped` and replaced, for good, by the next one that can: image and label
    both. Which one that is does not depend on the order of reading.

    Args:
        listing: the files, with labels where there are some.
        spec: size of the images, and their normalisation.
    """

    def __init__(self, listing: Listing, spec: Preprocessing) -> None:
        self._listing, self._spec, self.mean, self.std = listing, spec, spec.mean, spec.std
        self._labels = None if listing.labels is None else listing.labels.copy()
        self._stand_in: dict[int, int] = {}
        fits = len(self) * spec.height * spec.width * 3 <= CACHE_BYTES
        self._cache: dict[int, npt.NDArray[np.uint8]] | None = {} if fits else None

    def __len__(self) -> int:
        return len(self._listing.files)

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """Class index of each image, or None; of an unreadable image that was met, its stand-in's."""
        return self._labels

    @property
    def skipped(self) -> tuple[Path, ...]:
        """The unreadable files that were met so far."""
        return tuple(self._listing.files[index] for index in sorted(self._stand_in))

    def pixels(self, indices: Indices) -> Tensor:
        """The chosen images as float32 [n, 3, H, W] in [0, 1]. Raises `InputError` where too many cannot be read."""
        chosen = np.arange(len(self))[indices]
        stacked = np.stack([self._image(int(index)) for index in chosen])
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(255.0)

    def inputs(self, indices: Indices) -> Tensor:
        """The chosen images as the network takes them, float32 [n, 3, H, W]."""
        return normalised(self.pixels(indices), self.mean, self.std)

    def take(self, indices: Sequence[int]) -> ImageFolder:
        """The set of the chosen images only."""
        chosen = np.asarray(indices, np.int64)
        labels = None if self._listing.labels is None else self._listing.labels[chosen]
        files = tuple(self._listing.files[index] for index in chosen)
        return ImageFolder(Listing(files, labels, self._listing.class_names), self._spec)

    def _image(self, index: int) -> npt.NDArray[np.uint8]:
        index = self._stand_in.get(index, index)
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        try:
            image = read_image(self._listing.files[index], (self._spec.height, self._spec.width))
        except InputError as error:
            return self._replaced(index, error)
        if self._cache is not None:
            self._cache[index] = image
        return image

    def _replaced(self, index: int, error: InputError) -> npt.NDArray[np.uint8]:
        """The next readable image instead; its place is remembered."""
        self._stand_in[index] = (index + 1) % len(self)
        if len(self._stand_in) > most_unreadable(len(self)):
            raise InputError(
                f"{len(self._stand_in)} of {len(self)} images cannot be read; the last: {error.message}",
                hint="remove the damaged files, or convert them to JPEG or PNG",
            ) from error
        image = self._image(self._stand_in[index])
        self._stand_in[index] = self._stand_in.get(self._stand_in[index], self._stand_in[index])
        if self._labels is not None:
            self._labels[index] = self._labels[self._stand_in[index]]
        return image
