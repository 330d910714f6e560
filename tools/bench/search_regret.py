"""Regret, the share of the gap that is closed, and what a rival pays for the same regret: pure figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_runtime.quality import Z_95, Values

__all__ = ["Equal", "Summary", "best_on", "equal_regret", "summary"]


@dataclass(frozen=True, slots=True)
class Summary:
    """Of several draws."""

    regret_points: float
    """Accuracy of the reference less that of what was found, mean, in points of a hundred; below 0 it was better."""

    regret_margin: float
    """Half of the 95 % interval of the mean, points; nan of a single draw."""

    gap_closed: float
    """Share of the reference's advantage over a random subnet that was found; nan where it has none."""


@dataclass(frozen=True, slots=True)
class Equal:
    """What a rival pays until its mean regret is no higher than ours."""

    reached: bool
    """Whether it ever was; otherwise `blocks` is all that it paid, and `ratio` a lower bound."""

    blocks: float
    ratio: float
    """`blocks` over ours."""


def best_on(right: Values, costs: Values) -> int:
    """Row of the best of some subnets, of equals the cheapest.

    Args:
        right: 1.0 where a subnet is right, [S, n].
        costs: [S].
    """
    return int(np.lexsort((costs, -right.mean(axis=1)))[0])


def summary(reference: Values, found: Values, at_random: Values) -> Summary:
    """Figures of paired draws.

    Args:
        reference: accuracy of the reference on the other half in each draw, [D].
        found: of the subnet that a search found, [D].
        at_random: mean of random subnets, [D].
    """
    regrets = 100 * (reference - found)
    gap = 100 * float((reference - at_random).mean())
    margin = Z_95 * float(regrets.std(ddof=1)) / math.sqrt(len(regrets)) if len(regrets) > 1 else math.nan
    mean = float(regrets.mean())
    return Summary(mean, margin, 1 - mean / gap if gap > 0 else math.nan)


def equal_regret(blocks: float, regret: float, trace: Sequence[tuple[float, float]]) -> Equal:
    """Compare ours with the trace of a rival.

    Args:
        blocks: mean block evaluations of ours.
        regret: mean regret of ours, on the same draws.
        trace: mean block evaluations and mean regret of the rival, at least one pair.
    """
    enough = [paid for paid, rest in trace if rest <= regret]
    paid = min(enough) if enough else max(paid for paid, _ in trace)
    return Equal(bool(enough), paid, paid / blocks)
