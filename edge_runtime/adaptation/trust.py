"""How far local images may lead away from what the bundle holds for good.

Images without labels say how well a subnet agrees with the full one *on them*. On black frames, on one scene for hours
or in fog all subnets agree, the worst too, and the cheapest would be taken. The bundle's prior was measured on clean
images: a subnet is trusted where its expected damage is at most `LEEWAY` times the least that the same latency allows,
with `SLACK` on top. Of 18 subnets that a search with labels chose on Tiny-ImageNet none was above 1.4 times the least.
The less the images can tell (`Evaluator.variety`), the less of both is granted: on images of one class the prior
decides alone.
"""

from __future__ import annotations

from collections.abc import Callable

from edge_runtime.additive import AdditiveCost, Plan, fastest
from edge_runtime.gates import Gates

__all__ = ["Trust"]

LEEWAY = 1.5
"""Expected damage that is trusted, over the least within the limit."""

SLACK = 0.1
"""The same where the least is next to nothing, in units of `Plan.scale`."""

LEAST_SLACK = 0.02
"""What is left of it on images that tell nothing: subnets that differ by no more are the same."""


class Trust:
    """Bounds the expected damage of what is chosen within a latency limit.

    Args:
        cost: Predicted p95 of a subnet, milliseconds.
        prior: Expected damage of a subnet, from the bundle; without one (all 0) everything is trusted.
        variety: Gives how much the images can tell so far, 0 to 1.
    """

    def __init__(self, cost: AdditiveCost, prior: AdditiveCost, variety: Callable[[], float] = lambda: 1.0) -> None:
        self._cost, self._prior, self._variety = cost, prior, variety
        self._least_ms = cost(fastest(cost))
        # A subnet that is slower than the full one and worse is in no list, so this limit loses nothing.
        self._most_ms = max(cost(cost.space.default), self._least_ms)
        self._plan = Plan(cost, prior, self._most_ms)

    def damage(self, gates: Gates) -> float:
        """Expected damage of a subnet."""
        return self._prior(gates)

    def most_damage(self, limit_ms: float) -> float:
        """The expected damage up to which subnets within a limit are trusted; below all predictions the fastest's."""
        within_ms = min(max(limit_ms, self._least_ms), self._most_ms)
        variety = self._variety()
        leeway, slack = 1 + (LEEWAY - 1) * variety, LEAST_SLACK + (SLACK - LEAST_SLACK) * variety
        return leeway * self._plan.least(within_ms) + slack * self._plan.scale

    def allows(self, gates: Gates, limit_ms: float) -> bool:
        """Whether a subnet is trusted where so much time is allowed."""
        return self.damage(gates) <= self.most_damage(limit_ms)
