"""Labelled images in memory, batches of them in a seeded order, and the augmentation that training uses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads
from torch import Tensor

from edge_runtime.errors import InputError

__all__ = ["Augmentation", "ImageSet", "epoch_batches"]


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images with their labels. Raises `InputError` when they do not belong together."""

    images: npt.NDArray[np.uint8]
    """RGB [N, H, W, 3]."""

    labels: npt.NDArray[np.int64]
    """[N]."""

    mean: tuple[float, float, float]
    """Subtracted from pixels in [0, 1], per channel."""

    std: tuple[float, float, float]
    """What is left is divided by this, per channel."""

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[-1] != 3 or self.images.dtype != np.uint8:
            raise InputError(f"images are uint8 [N, H, W, 3], got {self.images.dtype} {self.images.shape}")
        if len(self.labels) != len(self.images):
            raise InputError(f"{len(self.labels)} labels for {len(self.images)} images")
        if len(self.images) == 0:
            raise InputError("the set of images is empty", hint="check the data folder and the choice of classes")

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, indices: npt.NDArray[np.int64] | slice) -> Tensor:
        """The chosen images as float32 [n, 3, H, W] in [0, 1]."""
        return torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2).float().div_(255.0)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] as the network takes them."""
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def inputs(self, indices: npt.NDArray[np.int64] | slice) -> Tensor:
        """The chosen images as the network takes them, float32 [n, 3, H, W]."""
        return self.normalise(self.pixels(indices))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random changes to training images, drawn anew for each image. Raises `InputError` when built invalid."""

    rotate_degrees: float = 10.0
    """Largest turn to either side."""

    zoom: float = 0.15
    """Largest change of scale, as a part of the image; in [0, 1)."""

    shift: float = 0.08
    """Largest shift, as a part of the side."""

    flip: bool = True
    """Whether images are mirrored left to right, half of the time."""

    upside_down: bool = False
    """Whether images are mirrored top to bottom, half of the time (objects seen from above)."""

    brightness: float = 0.3
    """Largest change of brightness and of contrast, as a part; in [0, 1)."""

    def __post_init__(self) -> None:
        if not all(0 <= value < 1 for value in (self.zoom, self.shift, self.brightness)):
            raise InputError("zoom, shift and brightness of an augmentation are in [0, 1)")
        if not 0 <= self.rotate_degrees <= 180:
            raise InputError(f"an augmentation turns by 0 to 180 degrees, not {self.rotate_degrees}")

    def apply(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """Changed copies of float32 pixels [N, 3, H, W] in [0, 1]."""
        count = len(pixels)
        grid = F.affine_grid(self._maps(count, rng), list(pixels.shape), align_corners=False)
        moved = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
        gain, contrast = (_uniform(rng, count, self.brightness).view(-1, 1, 1, 1) + 1.0 for _ in range(2))
        mean = moved.mean((1, 2, 3), keepdim=True)
        return ((moved - mean).mul_(contrast).add_(mean).mul_(gain)).clamp_(0.0, 1.0)

    def _maps(self, count: int, rng: np.random.Generator) -> Tensor:
        """Affine maps [count, 2, 3] from places in the output to places in the input, both in [-1, 1]."""
        angle = _uniform(rng, count, math.radians(self.rotate_degrees))
        scale = 1.0 + _uniform(rng, count, self.zoom)
        mirror_x, mirror_y = (_signs(rng, count, wanted) for wanted in (self.flip, self.upside_down))
        shift = (_uniform(rng, count, 2 * self.shift) for _ in range(2))
        cos, sin = angle.cos() * scale, angle.sin() * scale
        rows = torch.stack((cos * mirror_x, -sin * mirror_y, sin * mirror_x, cos * mirror_y), 1).view(-1, 2, 2)
        return torch.cat((rows, torch.stack(tuple(shift), 1).unsqueeze(2)), 2)


def epoch_batches(
    images: ImageSet, size: int, *, seed: int, epoch: int, augmentation: Augmentation | None = None, first: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (inputs float32 [size, 3, H, W], labels int64 [size]) of one epoch from batch `first` on; all are full.

    A set smaller than `size` gives one batch of all. Everything random depends on `seed`, `epoch` and the number of the
    batch alone, so a resumed run sees the same batches.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(images))
    size = min(size, len(images))
    for number in range(first, len(images) // size):
        chosen = order[number * size : (number + 1) * size]
        pixels = images.pixels(chosen)
        if augmentation is not None:
            pixels = augmentation.apply(pixels, np.random.default_rng((seed, epoch, number)))
        yield images.normalise(pixels), torch.from_numpy(images.labels[chosen])


def _uniform(rng: np.random.Generator, count: int, limit: float) -> Tensor:
    return torch.from_numpy(rng.uniform(-limit, limit, count).astype(np.float32))


def _signs(rng: np.random.Generator, count: int, wanted: bool) -> Tensor:
    return torch.from_numpy(rng.choice([-1.0, 1.0] if wanted else [1.0, 1.0], count).astype(np.float32))
