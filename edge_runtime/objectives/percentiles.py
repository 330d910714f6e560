"""Percentiles, and from how many runs on one is stated.

By the early-stopping rule of MLPerf LoadGen (`loadgen/early_stopping.cc`): a percentile is only stated when so many
runs were made that, with 99 % confidence, one run above it was to be expected and could be discarded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edge_runtime.errors import UsageError

__all__ = ["RUNS_NEEDED", "percentile", "upper_rank"]

RUNS_NEEDED: Mapping[int, int] = {50: 11, 90: 64, 95: 130, 99: 662}
"""Runs that a percentile needs before it is stated: the smallest n whose second largest sample is an upper bound."""

_RISK = 0.01  # of stating an upper bound that lies below the true percentile


def percentile(sorted_values: Sequence[float], q: float) -> float:
    """The nearest-rank percentile: the smallest value with at least `q` percent of all values at or below it.

    Args:
        sorted_values: Ascending and not empty, in any unit.
        q: In (0, 100].

    Raises:
        UsageError: No values, or `q` outside its range.
    """
    if not sorted_values:
        raise UsageError("a percentile of no values does not exist", hint="measure at least one run")
    if not 0 < q <= 100:
        raise UsageError(f"percentile {q} is not in (0, 100]")
    return sorted_values[math.ceil(q * len(sorted_values) / 100) - 1]


def upper_rank(count: int, q: float) -> int | None:
    """Rank (1 to `count`) of the sample that is at or above the true percentile `q` with 99 % confidence.

    Sample k lies below the true percentile when at least k of `count` runs do: P(Binomial(count, q / 100) >= k). None
    when even the largest sample is too likely to lie below it.
    """
    share = q / 100
    if not 0 < share < 1:
        raise UsageError(f"percentile {q} is not in (0, 100)")
    log_term, tail, rank = count * math.log(share), 0.0, count
    while rank > 0:
        tail += math.exp(log_term)
        if tail > _RISK:
            break
        # Binomial(count) at rank - 1 from the one at rank, in logarithms: the terms underflow from about 1,000 runs on.
        log_term += math.log(rank / (count - rank + 1)) + math.log((1 - share) / share)
        rank -= 1
    return rank + 1 if rank < count else None
