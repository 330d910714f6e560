"""Single-entry single-exit regions of a traced graph that are worth exchanging, by bit sets over its nodes.

A region belongs to a pair of values (entry, exit): all nodes on the ways from the entry to the exit. It can be
exchanged as a whole when its nodes read nothing but each other, the entry and constants, and when nobody outside reads
any of its values but the exit. What else is alive around it (taps, dense connections, other branches) does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from builder.elastify.nodes import shape_of, tensor_inputs

__all__ = ["GraphIndex", "Region", "bits", "find_regions", "is_image"]


def bits(mask: int) -> Iterator[int]:
    """Positions of the set bits, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


@dataclass(frozen=True, slots=True)
class Region:
    """The nodes between two values."""

    entry: int
    """Position of the node that makes the value that enters."""

    exit: int
    """Position of the node that makes the value that leaves; the last of the region."""

    mask: int
    """Bit set of its nodes: without the entry, with the exit."""


class GraphIndex:
    """Positions, readers and dominators of the computed nodes of a graph (constants and the output left out)."""

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = [node for node in graph.nodes if node.op not in ("get_attr", "output")]
        self.position = {node: index for index, node in enumerate(self.nodes)}
        end = len(self.nodes)
        self.inputs = [self._mask(tensor_inputs(node)) for node in self.nodes]
        self.users = [sum(1 << self.position.get(user, end) for user in set(node.users)) for node in self.nodes]
        self.ancestors: list[int] = []
        self.dominators: list[int] = []
        for index, mask in enumerate(self.inputs):
            above, common = 0, -1 if mask else 0
            for source in bits(mask):
                above |= self.ancestors[source] | 1 << source
                common &= self.dominators[source]
            self.ancestors.append(above)
            self.dominators.append(common | 1 << index)
        self.descendants = [0] * end
        for index in reversed(range(end)):
            for user in bits(self.users[index] & ((1 << end) - 1)):
                self.descendants[index] |= self.descendants[user] | 1 << user

    def _mask(self, nodes: list[fx.Node]) -> int:
        return sum(1 << self.position[node] for node in dict.fromkeys(nodes))

    def region(self, entry: int, exit_at: int) -> Region | None:
        """The region between two values; None where it is not closed."""
        mask = (self.ancestors[exit_at] & self.descendants[entry]) | 1 << exit_at
        inside = mask | 1 << entry
        for index in bits(mask):
            if self.inputs[index] & ~inside or (index != exit_at and self.users[index] & ~mask):
                return None
        return Region(entry, exit_at, mask)


def find_regions(index: GraphIndex, cuts: int, costly: int, most_costly: int) -> list[Region]:
    """All closed regions between two values of `cuts` (bit set) that hold 1 to `most_costly` nodes of `costly`."""
    found = []
    for exit_at in bits(cuts):
        above = index.dominators[exit_at] & cuts & ~(1 << exit_at)
        for entry in reversed(list(bits(above))):
            mask = index.ancestors[exit_at] & index.descendants[entry] | 1 << exit_at
            held = (mask & costly).bit_count()
            if held > most_costly:
                break
            region = index.region(entry, exit_at) if held else None
            if region is not None:
                found.append(region)
    return found


def is_image(node: fx.Node) -> bool:
    """Whether a value is [N, C, H, W] with more than one pixel."""
    shape = shape_of(node)
    return len(shape) == 4 and shape[2] * shape[3] > 1
