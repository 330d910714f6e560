"""The choice among measured finalists: pure, so that every rule can be tested without a clock or a device.

1. A finalist is feasible when its measured p95, with some headroom, and its memory are inside the budget.
2. The best feasible finalist is the one with the highest quality, of equals the fastest.
3. The current subnet stays where it is feasible and the images cannot tell it from the best.
4. Otherwise the cheapest feasible finalist is taken that the images cannot tell from the best *and* whose quality is
   within `INDIFFERENCE` of it: on few images very different subnets are not significantly different, and to prefer the
   cheaper of those would give quality away.

So no feasible finalist is ever significantly better than the chosen one, on the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_runtime.adaptation.status import Candidate, Fate
from edge_runtime.evaluate import Comparison
from edge_runtime.gates import Gates
from edge_runtime.objectives import Budget, Score

__all__ = ["HEADROOM", "INDIFFERENCE", "Choice", "choose"]

HEADROOM = 0.04
"""Share of the latency limit that a measured p95 must leave free: the next measurement is not this one."""

INDIFFERENCE = 0.003
"""Difference of quality that is not worth a slower subnet where the images cannot tell the two apart."""

Compare = Callable[[Gates, Gates], Comparison]


@dataclass(frozen=True, slots=True)
class Choice:
    """The subnet to run, why, and what became of each finalist."""

    score: Score
    """The chosen finalist."""

    reason: str
    """Why it, for people."""

    candidates: tuple[Candidate, ...]
    """Every finalist with its fate, in the order given."""


def choose(
    finalists: Sequence[Score],
    *,
    current: Gates,
    budget: Budget,
    full_latency_ms: float,
    compare: Compare,
    headroom: float = HEADROOM,
) -> Choice | None:
    """Pick one measured finalist; None where none is feasible.

    Args:
        finalists: Scores with a measured p95, of different subnets.
        current: The active subnet; it is kept in doubt if it is among the finalists and feasible.
        budget: What must be met.
        full_latency_ms: Measured p95 of the full subnet, for budgets that are a fraction of it.
        compare: Quality of one subnet minus that of another on the same images.
        headroom: Share of the latency limit to leave free, 0 to 1.
    """
    limit_ms = budget.limit_ms(full_latency_ms) * (1 - headroom)
    feasible = [s for s in finalists if s.latency_ms <= limit_ms and (s.peak_bytes or 0) <= budget.memory_bytes]
    if not feasible:
        return None
    best = max(feasible, key=lambda score: (score.quality, -score.latency_ms))
    chosen = _among_equals(feasible, best, current, compare)
    candidates = tuple(_fate(score, chosen, best, budget, limit_ms, current, compare) for score in finalists)
    return Choice(chosen, _reason(chosen, best, current, compare, limit_ms), candidates)


def _among_equals(feasible: Sequence[Score], best: Score, current: Gates, compare: Compare) -> Score:
    equals = [
        s for s in feasible if s is best or not any(compare(o.gates, s.gates).better for o in feasible if o is not s)
    ]
    for score in equals:
        if score.gates == current:
            return score
    near = [score for score in equals if best.quality - score.quality <= INDIFFERENCE]
    return min(near, key=lambda score: (score.latency_ms, -score.quality))


def _fate(
    score: Score, chosen: Score, best: Score, budget: Budget, limit_ms: float, current: Gates, compare: Compare
) -> Candidate:
    if score is chosen:
        return Candidate(
            score, "kept" if score.gates == current else "chosen", f"measured p95 {score.latency_ms:.2f} ms"
        )
    if score.latency_ms > limit_ms:
        over: Fate = "reference" if score.gates.is_default else "over budget"
        return Candidate(score, over, f"measured p95 {score.latency_ms:.2f} ms > {limit_ms:.2f} ms")
    if (score.peak_bytes or 0) > budget.memory_bytes:
        return Candidate(score, "over budget", f"peak memory {(score.peak_bytes or 0) / 2**20:.0f} MiB > {budget}")
    gap = compare(chosen.gates, score.gates)
    figures = f"{_points(-gap.difference)} against the chosen ({_points(-gap.high)} to {_points(-gap.low)})"
    if gap.better:
        return Candidate(score, "worse", figures)
    if score is best:
        aside = "the current one stays" if chosen.gates == current else "the cheaper one is taken"
        return Candidate(score, "indistinguishable", f"{figures}: the images cannot tell, {aside}")
    return Candidate(score, "lost", figures)


def _taken(score: Score, current: Gates) -> Fate:
    return "kept" if score.gates == current else "chosen"


def _reason(chosen: Score, best: Score, current: Gates, compare: Compare, limit_ms: float) -> str:
    room = f"p95 {chosen.latency_ms:.2f} ms" + (f" within {limit_ms:.2f} ms" if limit_ms < float("inf") else "")
    if chosen is best:
        stays = "stays the best" if chosen.gates == current else "is the best"
        return f"{chosen.gates} {stays} of the measured subnets that fit: quality {chosen.quality:.3f}, {room}"
    gap = compare(best.gates, chosen.gates)
    doubt = f"cannot tell it from {best.gates} on {gap.samples} images ({_points(gap.low)} to {_points(gap.high)})"
    if chosen.gates == current:
        return f"kept {chosen.gates}, {room}: {doubt}"
    return f"{chosen.gates}, {room}, is the cheaper: {doubt}"


def _points(difference: float) -> str:
    """A difference of quality in points of a hundred."""
    return f"{100 * difference:+.2f} points"
