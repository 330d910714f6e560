"""Random changes to training images, drawn in whole batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads
from torch import Tensor

from edge_runtime.errors import InputError

__all__ = ["Augmentation"]


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

    def apply(
        self, pixels: Tensor, rng: np.random.Generator, *, of: int | None = None, part: slice = slice(None)
    ) -> Tensor:
        """Changed copies of float32 pixels [N, 3, H, W] in [0, 1].

        Args:
            pixels: the images, on the device that does the work; what is drawn is the same on all of them.
            rng: what is drawn from.
            of: images of the whole batch that `pixels` is `part` of; it is drawn for all of them, so that an image is
                changed in the same way however the batch is cut. None: `pixels` is the whole.
            part: places of `pixels` in that batch.
        """
        count = len(pixels) if of is None else of
        maps = self._maps(count, rng)[part].to(pixels.device)
        grid = F.affine_grid(maps, list(pixels.shape), align_corners=False)
        moved = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
        gain, contrast = (
            _uniform(rng, count, self.brightness)[part].to(pixels.device).view(-1, 1, 1, 1) + 1.0 for _ in range(2)
        )
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


def _uniform(rng: np.random.Generator, count: int, limit: float) -> Tensor:
    return torch.from_numpy(rng.uniform(-limit, limit, count).astype(np.float32))


def _signs(rng: np.random.Generator, count: int, wanted: bool) -> Tensor:
    return torch.from_numpy(rng.choice([-1.0, 1.0] if wanted else [1.0, 1.0], count).astype(np.float32))
