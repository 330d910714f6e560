"""Images with the normalisation that a network takes them with, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge_runtime.bundle import Preprocessing
from edge_runtime.errors import InputError
from edge_runtime.inputs import Samples, check_labels, fit

__all__ = ["Channels", "ImageSet", "Indices", "Pixels", "normalised"]

Indices = npt.NDArray[np.int64] | slice

Channels = tuple[float, float, float]
"""One value for each of R, G, B."""


class Pixels(Protocol):
    """A set of images of one size; in memory or on the disk."""

    mean: Channels
    """Subtracted from pixels in [0, 1], per channel R, G, B."""

    std: Channels
    """What is left is divided by this, per channel."""

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """Class index of each image; read it after the images, as an unreadable one takes its stand-in's label."""

    def __len__(self) -> int:
        """Number of images."""

    def pixels(self, indices: Indices) -> Tensor:
        """The chosen images as float32 [n, 3, H, W] in [0, 1]."""

    def inputs(self, indices: Indices) -> Tensor:
        """The chosen images as the network takes them, float32 [n, 3, H, W]."""


def normalised(pixels: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Pixels in [0, 1] as a network takes them, both float32 [N, 3, H, W]."""
    offset, factor = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (mean, std))
    return (pixels - offset) / factor


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images in memory, with labels where there are some. Raises `InputError` when they do not belong together."""

    images: npt.NDArray[np.uint8]
    """RGB [N, H, W, 3]."""

    labels: npt.NDArray[np.int64] | None
    """[N], or None."""

    mean: Channels
    """Subtracted from pixels in [0, 1], per channel."""

    std: Channels
    """What is left is divided by this, per channel."""

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[-1] != 3 or self.images.dtype != np.uint8:
            raise InputError(f"images are uint8 [N, H, W, 3], got {self.images.dtype} {self.images.shape}")
        if len(self.images) == 0:
            raise InputError("the set of images is empty", hint="check the data folder and the choice of classes")
        if self.labels is not None:
            object.__setattr__(self, "labels", check_labels(self.labels, len(self.images)))

    @classmethod
    def of(cls, samples: Samples, spec: Preprocessing) -> ImageSet:
        """Samples of any sizes, resized as the runtime resizes frames."""
        return cls(np.stack([fit(image, spec) for image in samples.images]), samples.labels, spec.mean, spec.std)

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, indices: Indices) -> Tensor:
        """The chosen images as float32 [n, 3, H, W] in [0, 1]."""
        return torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2).float().div_(255.0)

    def inputs(self, indices: Indices) -> Tensor:
        """The chosen images as the network takes them, float32 [n, 3, H, W]."""
        return normalised(self.pixels(indices), self.mean, self.std)

    def take(self, indices: Sequence[int]) -> ImageSet:
        """The set of the chosen images only."""
        chosen = np.asarray(indices, np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return ImageSet(self.images[chosen], labels, self.mean, self.std)
