"""What the graph check knows of a tensor, and what it asks of an operator. Pure; knows no protobuf and no operator."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "MAX_CHANNELS",
    "MAX_COUNT",
    "MAX_ELEMENTS",
    "Attribute",
    "Elastic",
    "Infer",
    "Rule",
    "Shape",
    "Value",
    "Work",
]

MAX_ELEMENTS = 2**26
"""Of one tensor, for one image."""

MAX_CHANNELS = 2**14
"""Of one layer whose channels gates switch."""

MAX_COUNT = 6
"""Of the numbers in one attribute."""

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Elastic:
    """Elements along one axis that are there only while their gate is on."""

    axis: int
    channels: tuple[int, ...]
    """The entry of the gate vector that decides, for each element along the axis."""


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a tensor without running anything."""

    dtype: str
    """`float32`, `int64`, `bool`, or in layers of 8 bits `uint8`, `int8` and `int32`."""

    shape: Shape
    """None is the batch, and can only come first. Of an elastic tensor the shape while every gate is on."""

    constants: tuple[float, ...] | None = None
    """The values of a small initializer."""

    stored: bool = False
    """Whether it is an initializer, or what gates leave of one."""

    decoded: bool = False
    """Whether it is what an initializer in 8 bits stands for: a weight, and nothing else."""

    gate: int | None = None
    """The entry of the gate vector that it is, or that it tests."""

    channels: tuple[int, ...] | None = None
    """The entries of the gate vector that its elements are, or test; one for each channel of a layer."""

    elastic: Elastic | None = None
    """What of it gates switch; None where all of it is always there."""

    index_bytes: bytes | memoryview | None = field(default=None, compare=False, repr=False)
    """Little-endian int64 of a stored vector too long for `constants`: not decoded before something asks."""

    @property
    def elements(self) -> int:
        """Number of elements for one image."""
        return math.prod(d for d in self.shape if d is not None)

    def integers(self) -> tuple[int, ...] | None:
        """The values of a stored int64 vector of at most `MAX_CHANNELS`; None of anything else."""
        if self.dtype != "int64" or not self.stored or len(self.shape) != 1 or self.elements > MAX_CHANNELS:
            return None
        if self.index_bytes is not None:
            return struct.unpack(f"<{self.elements}q", self.index_bytes)
        return tuple(map(int, self.constants)) if self.constants else None


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute that an operator may have; a number, or `count` of them."""

    low: float
    high: float
    default: Any = None
    """Used where it is absent; None means that the operator sees None."""

    count: int | None = None
    """None: a single number; 0: any count up to `MAX_COUNT`."""

    real: bool = False
    """Float instead of int."""

    words: tuple[str, ...] = ()
    """Where there are any, it is one of these words instead of a number."""


Infer = Callable[[Mapping[str, Any], Sequence[Value | None]], Value]
Work = Callable[[Mapping[str, Any], Sequence[Value | None], Value], int]


@dataclass(frozen=True, slots=True)
class Rule:
    """What one operator takes and gives. `infer` raises `BundleError` with what does not fit."""

    inputs: tuple[int, int]
    """Least and most inputs."""

    infer: Infer
    """From attributes and inputs to the one output."""

    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    elastic: bool = False
    """Whether `infer` judges inputs that gates switch; for all others they are refused."""

    work: Work | None = None
    """Multiply-adds for one image, from attributes, inputs and output, beyond one for each element of those."""
