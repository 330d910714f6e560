"""How far local images may lead away from what the bundle holds for good.

Images without labels say how well a subnet agrees with the full one *on them*. On black frames, on one scene for hours
or in fog all subnets agree, the worst too, and the cheapest would be taken. The bundle's prior was measured on clean
images: a subnet is trusted where its expected damage is at most `LEEWAY` times the least that the same latency allows.
Of the subnets that a search with labels chose on Tiny-ImageNet, at six latencies and three trainings, none was above
1.4 times, so the bound costs nothing where the images are good.
"""

from __future__ import annotations

import math

from edge_runtime.additive import AdditiveCost, Plan

__all__ = ["most_damage"]

LEEWAY = 1.5
"""Expected damage that is trusted, over the least within the limit."""

SLACK = 0.1
"""The same where the least is next to nothing, in units of `Plan.scale`."""


def most_damage(cost: AdditiveCost, prior: AdditiveCost, limit_ms: float) -> float:
    """The expected damage up to which subnets are trusted; infinite where none is predicted within the limit.

    Args:
        cost: Predicted p95 of a subnet, milliseconds.
        prior: Expected damage of a subnet, from the bundle; without one (all 0) everything is trusted.
        limit_ms: Upper limit of the predicted latency, milliseconds; infinite for none.
    """
    plan = Plan(cost, prior, limit_ms)
    return LEEWAY * prior(plan.best()) + SLACK * plan.scale if plan.feasible else math.inf
