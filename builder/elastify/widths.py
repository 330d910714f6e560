"""Book-keeping of channels that belong together: parts of values, tied into widths, cut where a split asks for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

__all__ = ["WidthFacts", "WidthTable"]


@dataclass(slots=True)
class WidthFacts:
    """What is known of one width while a graph is followed."""

    units: int
    """Blocks of channels that are kept or dropped as a whole."""

    balance: int = 1
    """Each of so many equal ranges keeps the same number of channels."""

    blocked: bool = False
    """Whether it has to stay as it is."""

    activated: bool = False
    """Whether a non-linearity lies on it; a linear bottleneck is narrow already."""

    producers: list[str] = field(default_factory=list)
    """Layers (by module path) that make its channels."""

    consumers: list[str] = field(default_factory=list)
    """Layers that read and mix them."""

    values: set[fx.Node] = field(default_factory=set)
    """Values that hold it."""


class WidthTable:
    """Parts are numbers; a width is a set of tied parts (a union-find). A cut replaces a part by two new ones."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._sizes: list[int] = []
        self._facts: list[WidthFacts] = []
        self._cut: dict[int, tuple[int, int]] = {}

    def new(self, size: int, *, blocked: bool = False) -> int:
        """A part of `size` channels in a width of its own."""
        self._parent.append(len(self._parent))
        self._sizes.append(size)
        self._facts.append(WidthFacts(units=size, blocked=blocked))
        return len(self._parent) - 1

    def root(self, part: int) -> int:
        """Number of the width that a part belongs to."""
        while self._parent[part] != part:
            self._parent[part] = self._parent[self._parent[part]]
            part = self._parent[part]
        return part

    def facts(self, part: int) -> WidthFacts:
        """What is known of the width that a part belongs to."""
        return self._facts[self.root(part)]

    def size(self, part: int) -> int:
        """Channels of a part."""
        return self._sizes[part]

    def sizes(self, parts: Iterable[int]) -> list[int]:
        """Channels of each part."""
        return [self._sizes[part] for part in parts]

    def roots(self) -> list[int]:
        """All widths that were not cut, in order of their first value."""
        return [part for part in range(len(self._parent)) if self.root(part) == part and part not in self._cut]

    def expand(self, parts: Sequence[int]) -> tuple[int, ...]:
        """The parts with what was cut in the place of what it was cut from."""
        found: list[int] = []
        for part in parts:
            pieces = self._cut.get(self.root(part))
            found += self.expand(pieces) if pieces else [part]
        return tuple(found)

    def block(self, parts: Iterable[int]) -> None:
        """Leave the widths of these parts as they are."""
        for part in parts:
            self.facts(part).blocked = True

    def tie(self, first: int, second: int, units: int) -> None:
        """Make one width of two parts that consist of `units` blocks each."""
        a, b = self.root(first), self.root(second)
        one, two = self._facts[a], self._facts[b]
        one.units = math.gcd(one.units, two.units, units)
        if a == b:
            return
        one.blocked |= two.blocked
        one.activated |= two.activated
        one.balance = math.lcm(one.balance, two.balance)
        one.producers += two.producers
        one.consumers += two.consumers
        self._parent[b] = a

    def tie_values(self, first: Sequence[int], second: Sequence[int]) -> bool:
        """Tie two values of as many channels, part by part; False where they cannot be cut alike."""
        if sum(self.sizes(first)) != sum(self.sizes(second)):
            return False
        for one, other in ((first, second), (second, first)):
            offset = 0
            for size in self.sizes(self.expand(one)):
                offset += size
                if not self.cut(other, offset):
                    return False
        for a, b in zip(self.expand(first), self.expand(second), strict=True):
            if a != b:
                self.tie(a, b, self._sizes[a])
        return True

    def cut(self, parts: Sequence[int], offset: int) -> bool:
        """Make a border between two parts `offset` channels into a value; False where channels go in blocks there."""
        start = 0
        for part in self.expand(parts):
            size = self._sizes[part]
            if start < offset < start + size:
                return self._cut_width(self.root(part), size, offset - start)
            start += size
        return True

    def _cut_width(self, root: int, size: int, at: int) -> bool:
        facts = self._facts[root]
        if facts.units != size or facts.balance > 1:
            return False
        pieces = (self.new(at), self.new(size - at))
        for piece in pieces:
            lists = {"producers": [*facts.producers], "consumers": [*facts.consumers], "values": set()}
            self._facts[piece] = replace(facts, units=self._sizes[piece], **lists)
        self._cut[root] = pieces
        return True
