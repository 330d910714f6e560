"""Draw whole subnets for training, evenly over their cost.

Most subnets at a given cost are poor and no search will ever choose them, so a large share of the draws is near the
best that the prior knows; the others are drawn blindly, so that every alternative learns beside others. As training
goes on the draws narrow to what a search might choose, until none is blind: those subnets are worth the last steps,
and BN statistics are then theirs. All draws come from torch's global generator, so the ranks of a run draw
the same paths.
"""

from __future__ import annotations

import random

import torch

from builder.elastify.supernet import Supernet
from edge_runtime.additive import AdditiveCost, Plan, fastest
from edge_runtime.errors import UsageError
from edge_runtime.gates import Gates, GateSpace

__all__ = ["PathSampler", "checked_cost", "multiply_accumulates", "schedule"]

CANDIDATES = 24
LEVELS = 24
GUIDED_SHARE = 0.7
"""Of the draws at the start; at the end of the narrowing all are guided."""

COLDEST, HOTTEST, HOTTEST_AT_END = 0.003, 0.3, 0.008
"""Range of the log-uniform temperature of guided draws, in units of `Plan.scale`."""

NARROWING = (0.2, 0.8)
"""Progress at which the draws begin to narrow, and at which they are as narrow as they get."""


def schedule() -> tuple[object, ...]:
    """What decides the draws beside cost and damage: a checkpoint of other draws is of another run."""
    return CANDIDATES, LEVELS, GUIDED_SHARE, COLDEST, HOTTEST, HOTTEST_AT_END, NARROWING


class PathSampler:
    """Draws gate vectors evenly over a cost.

    Args:
        cost: over which draws are even: the latency table of a device, or `multiply_accumulates`.
        damage: the prior as an additive cost on the same space; with it a share of the draws is a random near-optimal
            plan under the target.
    """

    def __init__(self, cost: AdditiveCost, damage: AdditiveCost | None = None) -> None:
        self._space: GateSpace = cost.space
        self._cost = cost
        self._full, self._least = cost(self._space.default), cost(fastest(cost))
        self._plans = [] if damage is None else [Plan(cost, damage, limit) for limit in self._levels()]

    def sample(self, progress: float = 0.0) -> Gates:
        """One gate vector whose cost is near a target drawn uniformly between the cheapest subnet and the oracle.

        Args:
            progress: of the training, 0 to 1.
        """
        begin, end = NARROWING
        late = min(1.0, max(0.0, (progress - begin) / (end - begin)))
        if self._plans and torch.rand(()).item() < GUIDED_SHARE + (1 - GUIDED_SHARE) * late:
            return self._guided(HOTTEST ** (1 - late) * HOTTEST_AT_END**late)
        target = self._least + (self._full - self._least) * torch.rand(()).item()
        drawn = [self._blind(torch.rand(()).item()) for _ in range(CANDIDATES)]
        return min(drawn, key=lambda gates: abs(self._cost(gates) - target))

    def _levels(self) -> list[float]:
        step = (self._full - self._least) / LEVELS
        return [self._least + step * (level + 1) for level in range(LEVELS)]

    def _guided(self, hottest: float) -> Gates:
        plan = self._plans[int(torch.randint(len(self._plans), ()))]
        share = torch.rand(()).item()
        temperature = plan.scale * COLDEST ** (1 - share) * hottest**share
        return plan.draw(random.Random(int(torch.randint(2**31, ()))), temperature)

    def _blind(self, change: float) -> Gates:
        """Each unit leaves the original with probability `change`."""
        values = []
        for group in self._space.groups:
            leave = torch.rand(()).item() < change
            values.append(int(torch.randint(1, group.size, ())) if leave and group.size > 1 else 0)
        return self._space.gates(values)


def multiply_accumulates(supernet: Supernet) -> AdditiveCost:
    """Multiply-accumulates of one image as a cost: what is known of a subnet's time without any device."""
    entries = tuple(tuple(float(a.macs) for a in unit.alternatives) for unit in supernet.units)
    default = supernet.space.default
    base = supernet.macs(default) - sum(row[0] for row in entries)
    return AdditiveCost(supernet.space, base, entries)


def checked_cost(supernet: Supernet, latency: AdditiveCost | None) -> AdditiveCost:
    """The cost to spread paths over: `latency` where it is given, and then for this supernet, else the proxy."""
    if latency is None:
        return multiply_accumulates(supernet)
    if latency.space != supernet.space:
        raise UsageError(
            "the latency table belongs to another supernet", hint="measure it on a bundle exported from this one"
        )
    return latency
