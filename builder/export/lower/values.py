"""What travels through a traced module while it is translated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch

from builder.elastify.nodes import pair

__all__ = ["NO_PADS", "Pads", "Shape", "Value", "Weight", "axis_of", "pair"]

Shape: TypeAlias = tuple[int, ...]

Pads: TypeAlias = tuple[int, int, int, int]
"""Pixels at the top, left, bottom and right."""

NO_PADS: Pads = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Value:
    """An activation that a node of the graph makes, or an input."""

    name: str
    """Of the ONNX value."""

    shape: Shape
    """As traced; the batch comes first."""

    pads: Pads = NO_PADS
    """Zeros that belong around it and are not there yet: the convolution that reads it adds them. `shape` has them."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant of the module: a parameter, a buffer, or what is computed of such alone."""

    label: str
    """Unique in the module, e.g. ``features.conv.weight``."""

    tensor: torch.Tensor
    """Detached, on the CPU."""


def axis_of(dim: int, rank: int) -> int:
    """`dim` counted from the front."""
    return dim + rank if dim < 0 else dim
