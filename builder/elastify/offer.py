"""What each unit could be offered beside the original, with its cost and its bytes; nothing is fitted yet."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from builder.elastify.cost import multiply_accumulates, storage_bytes
from builder.elastify.narrow import channel_importance, narrow
from builder.elastify.norms import with_norms
from builder.elastify.options import ElasticOptions
from builder.elastify.segments import Segment

__all__ = ["Offer", "Window", "find_windows", "offers_of"]


@dataclass(frozen=True, slots=True)
class Window:
    """Neighbouring units that one merged alternative may replace."""

    first: int
    """Number of its first unit."""

    span: int
    """Units in it."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One alternative that a unit may get."""

    unit: int
    """Number of the unit that it stands at."""

    label: str
    span: int
    module: nn.Module
    macs: int
    bytes: int

    @property
    def merged(self) -> bool:
        """Whether it replaces several units."""
        return self.span > 1


def find_windows(segments: Sequence[Segment], numbers: Sequence[int], longest: int, tapped: set[str]) -> list[Window]:
    """Non-overlapping windows of 2 to `longest` neighbouring units, whose inner values nobody else reads.

    A stage begins at a unit that may change the shape; the units behind it keep it, so that a copy of the window's
    first unit maps the window's input shape to its output shape.

    Args:
        segments: the whole program.
        numbers: the segments that are units, ascending.
        longest: most units in a window.
        tapped: values that something besides the next segment reads, or that the network returns.
    """
    windows: list[Window] = []
    start = 0
    while start < len(numbers):
        stop = start + 1
        while stop < len(numbers) and _follows(segments, numbers[stop - 1], numbers[stop], tapped):
            stop += 1
        windows += _chunks(start, stop - start, longest)
        start = stop
    return windows


def _follows(segments: Sequence[Segment], before: int, after: int, tapped: set[str]) -> bool:
    chained = after == before + 1 and segments[before].outputs == segments[after].inputs
    return chained and segments[after].keeps_shape and segments[before].outputs[0] not in tapped


def _chunks(start: int, length: int, longest: int) -> list[Window]:
    chunks: list[Window] = []
    while length >= 2 and longest >= 2:
        span = length if length <= longest else max(2, min(longest, length // 2))
        chunks.append(Window(start, span))
        start, length = start + span, length - span
    return chunks


def offers_of(unit: int, segment: Segment, inputs: Sequence[Tensor], span: int, options: ElasticOptions) -> list[Offer]:
    """All alternatives that a unit may get, the original left out: narrower copies, skip, merged windows.

    Args:
        unit: number of the unit.
        segment: the unit.
        inputs: batches of the oracle at its entry.
        span: units of the window that begins here, 1 where none does.
        options: ratios and what is allowed.
    """
    original = multiply_accumulates(segment.module)
    base = with_norms(segment.module, inputs)
    importance = channel_importance(base, inputs)
    offers: list[Offer] = []

    def add(label: str, units: int, module: nn.Module) -> None:
        offers.append(Offer(unit, label, units, module, multiply_accumulates(module), storage_bytes(module)))

    for width in sorted(options.widths, reverse=True):
        copied = narrow(base, width, importance)
        cheapest = min((offer.macs for offer in offers), default=original)
        if copied is not None and multiply_accumulates(copied) < cheapest:
            add(f"narrow{round(100 * width)}", 1, copied)
    if options.skip and segment.keeps_shape:
        add("skip", 1, nn.Identity())
    for width in options.merged_widths if span > 1 else ():
        merged = _trainable_copy(base) if width == 1.0 else narrow(base, width, importance)
        if merged is not None:
            add(f"merged{span}" + ("" if width == 1.0 else f"-narrow{round(100 * width)}"), span, merged)
    return offers


def _trainable_copy(module: fx.GraphModule) -> fx.GraphModule:
    return copy.deepcopy(module).requires_grad_(True)
