"""The inner widths of a unit: channels that neither its input nor its output shows, and that may be pruned together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from builder.elastify.layout import ChannelLayouts, Layout

__all__ = ["ChannelPlan", "InnerWidth", "channel_plan", "inner_widths"]


@dataclass(frozen=True, slots=True)
class InnerWidth:
    """Channels inside a unit that are pruned together, in every value that holds them."""

    channels: int
    """Number of channels today, as the first producer makes them."""

    units: int
    """Blocks of channels that are kept or dropped as a whole; as many as channels but behind grouped convolutions."""

    balance: int
    """Each of so many equal ranges keeps the same number of channels; 1 where it does not matter."""

    producers: tuple[str, ...]
    """Layers (by module path) that make them."""

    consumers: tuple[str, ...]
    """Layers that read and mix them."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of a value's channels."""

    width: int | None
    """Index of its inner width; None where it stays as it is."""

    channels: int


@dataclass(frozen=True, slots=True)
class ChannelPlan:
    """Which channels of which layer go when an inner width shrinks."""

    widths: tuple[InnerWidth, ...]
    """In order of their first producer."""

    layers: Mapping[str, tuple[tuple[_Part, ...], tuple[_Part, ...]]]
    """Layer -> parts of its input, parts of its output."""

    constants: Mapping[str, tuple[int, tuple[_Part, ...]]]
    """Parameter that is added or multiplied -> its channel axis, and its parts."""

    values: Mapping[str, tuple[int, tuple[_Part, ...]]]
    """Every value by its node's name -> its channel axis, and its parts."""

    def kept(self, parts: tuple[_Part, ...], units: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Indices of the channels that stay, int64, ascending; `units` names the kept blocks of the shrunk widths."""
        found, offset = [torch.arange(0)], 0
        for part in parts:
            if part.width is None or part.width not in units:
                found.append(torch.arange(part.channels) + offset)
            else:
                size = part.channels // self.widths[part.width].units
                found.append((units[part.width][:, None] * size + torch.arange(size)).flatten() + offset)
            offset += part.channels
        return torch.cat(found)

    def width_of(self, parts: Iterable[_Part], units: Mapping[int, torch.Tensor]) -> int:
        """Channels that stay of a value."""
        return len(self.kept(tuple(parts), units))

    def range_width(self, parts: Iterable[_Part], start: int, stop: int, units: Mapping[int, torch.Tensor]) -> int:
        """Channels that stay of the range from `start` to `stop` of a value, whose borders lie between parts."""
        offset, inside = 0, []
        for part in parts:
            if start <= offset < stop:
                inside.append(part)
            offset += part.channels
        return self.width_of(inside, units)

    def by_unit(self, parts: tuple[_Part, ...], per_channel: torch.Tensor, width: int) -> torch.Tensor:
        """Sum a figure of each channel of a value over the blocks of one width, [units]."""
        total, offset = torch.zeros(self.widths[width].units), 0
        for part in parts:
            if part.width == width:
                block = per_channel[offset : offset + part.channels]
                total += block.view(len(total), -1).sum(1)
            offset += part.channels
        return total


def inner_widths(unit: fx.GraphModule) -> list[InnerWidth]:
    """The prunable widths of a unit, in order of their first producer; empty where nothing may be pruned."""
    return list(channel_plan(unit).widths)


def channel_plan(unit: fx.GraphModule) -> ChannelPlan:
    """Follow the channels through a unit; its input and its output keep theirs."""
    channels = ChannelLayouts(unit)
    for node in unit.graph.nodes:
        if node.op == "placeholder":
            channels.block(node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                channels.block(source)
    table = channels.table
    inner = [root for root in table.roots() if _is_prunable(channels, root)]
    index = {root: number for number, root in enumerate(inner)}

    def parts(layout: Layout) -> tuple[_Part, ...]:
        return tuple(_Part(index.get(table.root(part)), table.size(part)) for part in layout.parts)

    return ChannelPlan(
        tuple(_width(channels, root) for root in inner),
        {name: (parts(first), parts(last)) for name, (first, last) in channels.calls.items()},
        {name: (axis, parts(layout)) for name, (axis, layout) in channels.constants.items()},
        {node.name: (layout.axis, parts(layout)) for node, layout in channels.layouts.items()},
    )


def _is_prunable(channels: ChannelLayouts, root: int) -> bool:
    facts = channels.table.facts(root)
    uneven = facts.balance > 1 and facts.units != channels.table.size(root)
    return bool(facts.producers and facts.consumers and facts.activated) and not (facts.blocked or uneven)


def _width(channels: ChannelLayouts, root: int) -> InnerWidth:
    table, facts = channels.table, channels.table.facts(root)
    producers, consumers = tuple(dict.fromkeys(facts.producers)), tuple(dict.fromkeys(facts.consumers))
    made = channels.calls[producers[0]][1].parts
    size = next(table.size(part) for part in made if table.root(part) == root)
    return InnerWidth(size, facts.units, facts.balance, producers, consumers)
