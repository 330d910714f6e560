"""Exact planning where a figure of a subnet is a sum: the fastest subnet, and the least damage within a latency limit.

Predicted latency is a constant plus one entry per active decision, and so is the prior damage that the builder ships
with a bundle. Choosing one alternative per group under a limit is then a multiple-choice knapsack over a chain in which
merged alternatives jump several groups ahead. `Plan` solves it from the last group to the first with lists of
non-dominated (cost, damage) pairs. It is exact while a list has at most `MAX_LABELS` of them; longer lists are thinned
evenly, and the plan becomes a close approximation. Sees no clock, file or device.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from edge_runtime.checks import finite
from edge_runtime.errors import BudgetError, UsageError
from edge_runtime.gates import GateGroup, Gates, GateSpace, GateValue

__all__ = ["MAX_LABELS", "AdditiveCost", "Plan", "fastest"]

MAX_LABELS = 1024
_SLACK = 1e-9  # relative; sums of the same entries in another order differ by less


@dataclass(frozen=True, slots=True)
class AdditiveCost:
    """A figure of a subnet that is `base` plus its entries. Raises `UsageError` when built invalid."""

    space: GateSpace
    """The space whose subnets are priced."""

    base: float
    """What every subnet pays; milliseconds for a latency, no unit for a damage."""

    entries: tuple[tuple[float, ...], ...]
    """Per group: of a `choice` the price of each alternative, of `subset` and `experts` the price of each bit that is
    on. Finite, of any sign. The entry of a merged alternative pays for the whole window; covered groups pay nothing."""

    def __post_init__(self) -> None:
        sizes = [group.size for group in self.space.groups]
        if [len(row) for row in self.entries] != sizes:
            raise UsageError(f"the cost table does not fit the gate space: it needs {sizes[:8]} entries per group")
        rows = tuple(tuple(finite("a cost entry", entry) for entry in row) for row in self.entries)
        object.__setattr__(self, "base", finite("the base cost", self.base))
        object.__setattr__(self, "entries", rows)

    @classmethod
    def damage(cls, space: GateSpace, prior: Sequence[Sequence[float]]) -> AdditiveCost:
        """A bundle's prior as a cost: alternatives damage when chosen, modules and experts when they are off."""
        bits = [group.kind != "choice" for group in space.groups]
        base = sum(math.fsum(row) for row, is_bits in zip(prior, bits, strict=False) if is_bits)
        rows = (tuple(-d if is_bits else d for d in row) for row, is_bits in zip(prior, bits, strict=False))
        return cls(space, base, tuple(rows))

    def scaled(self, factor: float) -> AdditiveCost:
        """The same figure times a finite factor."""
        rows = tuple(tuple(entry * factor for entry in row) for row in self.entries)
        return AdditiveCost(self.space, self.base * factor, rows)

    def negative(self) -> AdditiveCost:
        """The same figure with the other sign: where nothing else is known, what is slow is assumed to be good."""
        return self.scaled(-1.0)

    def __call__(self, gates: Gates) -> float:
        """The figure of one subnet of `space`."""
        total = self.base
        for row, value, active in zip(self.entries, gates.values, gates.active, strict=True):
            if isinstance(value, int):
                total += row[value] if active else 0.0
            else:
                total += sum(entry for entry, on in zip(row, value, strict=True) if on)
        return total


_Label: TypeAlias = tuple[float, float, tuple[int, ...]]
"""A cost, a damage, and the bits that lead to them (none for the end of a chain, which is found again by walking)."""


@dataclass(frozen=True, slots=True)
class _Option:
    value: GateValue
    span: int
    cost: float
    damage: float


class Plan:
    """The best of a space under one limit, and random subnets close to it.

    Args:
        cost: What is limited, e.g. predicted milliseconds.
        damage: What is minimised, on the same space.
        limit: Upper limit of `cost`; `math.inf` for none.
    """

    def __init__(self, cost: AdditiveCost, damage: AdditiveCost, limit: float) -> None:
        if cost.space != damage.space:
            raise UsageError("cost and damage belong to different gate spaces")
        self.space, self.cost, self.damage, self.limit = cost.space, cost, damage, limit
        self._slack = _SLACK * abs(limit)
        rows = zip(self.space.groups, cost.entries, damage.entries, strict=True)
        self._options = [_options(group, costs, damages) for group, costs, damages in rows]
        self._suffixes = self._solve()

    def _solve(self) -> list[tuple[list[float], list[float]]]:
        """For each group the non-dominated sums of itself and all later ones: ascending costs, descending damages."""
        room = [self.limit + self._slack - self.cost.base - spent for spent in self._cheapest_prefixes()]
        suffixes: list[tuple[list[float], list[float]]] = [([0.0], [0.0])] * (len(self._options) + 1)
        for index in reversed(range(len(self._options))):
            sums = [
                (option.cost + cost, option.damage + damage, ())
                for option in self._options[index]
                for cost, damage in zip(*suffixes[index + option.span], strict=True)
            ]
            kept = _non_dominated(label for label in sums if label[0] <= room[index])
            suffixes[index] = ([label[0] for label in kept], [label[1] for label in kept])
        return suffixes

    def _cheapest_prefixes(self) -> list[float]:
        """For each group the lowest cost of everything before it: what a suffix has to leave room for."""
        cheapest = [0.0] + [math.inf] * len(self._options)
        for index, options in enumerate(self._options):
            for option in options:
                after = index + option.span
                cheapest[after] = min(cheapest[after], cheapest[index] + option.cost)
        return cheapest

    @property
    def scale(self) -> float:
        """A typical difference between the damages of two options of a group: the unit of temperatures; above 0."""
        ranges = [max(o.damage for o in row) - min(o.damage for o in row) for row in self._options]
        return sum(ranges) / len(ranges) or 1.0

    @property
    def feasible(self) -> bool:
        """Whether any subnet is within the limit."""
        return bool(self._suffixes[0][0])

    def fits(self, gates: Gates) -> bool:
        """Whether a subnet is within the limit, to a few parts in a thousand million."""
        return self.cost(gates) <= self.limit + 3 * self._slack

    def least(self, limit: float) -> float:
        """The least damage within a limit that is at most the plan's own; infinite where no subnet is."""
        return self.damage.base + self._completion(0, limit + 2 * self._slack - self.cost.base)

    def best(self) -> Gates:
        """The subnet with the least damage within the limit. Raises `BudgetError` where there is none."""
        return self.draw(random.Random(0), 0.0)

    def draw(self, rng: random.Random, temperature: float) -> Gates:
        """A random subnet within the limit.

        Each decision, first to last, is drawn with weight exp(-damage of its best completion / temperature).

        Args:
            rng: The only source of randomness.
            temperature: In units of damage, at least 0; 0 draws the best subnet.

        Raises:
            BudgetError: No subnet is within the limit.
        """
        if not self.feasible:
            raise infeasible(self.cost, self.limit)
        values: list[GateValue] = []
        left = self.limit + 2 * self._slack - self.cost.base
        while len(values) < len(self._options):
            index, options = len(values), self._options[len(values)]
            damages = [o.damage + self._completion(index + o.span, left - o.cost) for o in options]
            option = _pick(options, damages, rng, temperature)
            values.extend((option.value, *((0,) * (option.span - 1))))
            left -= option.cost
        return Gates(self.space, tuple(values))

    def _completion(self, index: int, left: float) -> float:
        """The least damage of the groups from `index` on that costs at most `left`; inf where nothing does."""
        costs, damages = self._suffixes[index]
        found = bisect_right(costs, left)
        return damages[found - 1] if found else math.inf


def fastest(cost: AdditiveCost) -> Gates:
    """The subnet with the lowest cost, exactly."""
    return Plan(cost, cost, math.inf).best()


def infeasible(cost: AdditiveCost, limit: float) -> BudgetError:
    """The error for a limit that no subnet meets; names the fastest subnet and its predicted latency."""
    gates = fastest(cost)
    return BudgetError(
        f"no subnet is predicted to run within {limit:.3g} ms: the fastest, {gates}, takes {cost(gates):.3g} ms",
        hint="allow more time, use more threads, or build a bundle with faster alternatives",
    )


def _options(group: GateGroup, costs: Sequence[float], damages: Sequence[float]) -> list[_Option]:
    """What may be decided at a group; of the subsets of bits only those that no other beats in cost and damage."""
    if group.kind == "choice":
        return [_Option(*row) for row in zip(range(group.size), group.spans, costs, damages, strict=True)]
    labels: list[_Label] = []
    for index, (cost, damage) in enumerate(zip(costs, damages, strict=True)):
        off = [(c, d, (*bits, 0)) for c, d, bits in labels]
        on = [(c + cost, d + damage, (*bits, 1)) for c, d, bits in labels]
        # At least one bit stays on, so the empty subset is never a label itself: it only starts one at each bit.
        labels = _non_dominated([*off, *on, (cost, damage, (0,) * index + (1,))])
    return [_Option(bits, 1, cost, damage) for cost, damage, bits in labels]


def _non_dominated(labels: Iterable[_Label]) -> list[_Label]:
    """Ascending in cost and strictly descending in damage, evenly thinned to `MAX_LABELS`."""
    kept: list[_Label] = []
    for label in sorted(labels):
        if not kept or label[1] < kept[-1][1]:
            kept.append(label)
    if len(kept) <= MAX_LABELS:
        return kept
    step = (len(kept) - 1) / (MAX_LABELS - 1)
    return [kept[round(index * step)] for index in range(MAX_LABELS)]


def _pick(options: Sequence[_Option], damages: Sequence[float], rng: random.Random, temperature: float) -> _Option:
    least = min(damages)
    if temperature <= 0:
        return options[damages.index(least)]
    weights = [math.exp((least - damage) / temperature) for damage in damages]
    return rng.choices(options, weights)[0]
