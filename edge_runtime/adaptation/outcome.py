"""What a finished search says: the choice, the frontier, and every candidate with the reason why it fell."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from edge_runtime.adaptation.choice import Choice
from edge_runtime.adaptation.finals import Finals
from edge_runtime.adaptation.shortlist import Shortlist
from edge_runtime.adaptation.status import Candidate, Fate
from edge_runtime.adaptation.trust import Trust
from edge_runtime.additive import AdditiveCost
from edge_runtime.errors import BudgetError
from edge_runtime.gates import Gates
from edge_runtime.objectives import Budget, Frontier, Measurement, Score

__all__ = ["AdaptResult", "outcome", "without_unusable"]

Allows = Callable[[Score, float], bool]

_BELOW = 1e-4
"""Quality by which a subnet is ranked below one that it looked better than and is not trusted in place of."""


@dataclass(frozen=True, slots=True)
class AdaptResult:
    """What one search found."""

    choice: Choice
    """The subnet to run, and why."""

    frontier: Frontier
    """The subnets worth having; of those within the limit the chosen one is the best."""

    candidates: tuple[Candidate, ...]
    """Finalists first, then what fell earlier, by quality."""

    measurements: tuple[Measurement, ...]
    """Raw samples of everything measured."""

    full_latency_ms: float
    """The full subnet's p95: its measured median times the tail of all runs."""

    full_energy_mj: float | None
    """What the full subnet takes for a frame at the median power of what was measured, millijoules; None where no power
    rail was read."""

    ended_early: bool
    """Whether the time limit cut the search."""


def outcome(
    choice: Choice,
    shortlist: Shortlist,
    finals: Finals,
    *,
    cost: AdditiveCost,
    trust: Trust,
    limit_ms: float,
    full_latency_ms: float,
    full_energy_mj: float | None,
    cut: bool,
) -> AdaptResult:
    """Put together what was evaluated and measured.

    Args:
        choice: The subnet to run.
        shortlist: What was evaluated on the images.
        finals: What was measured.
        cost: Predicted p95 of a subnet, milliseconds.
        trust: What may be chosen where how much time is allowed.
        limit_ms: The latency limit, milliseconds.
        full_latency_ms: p95 of the full subnet.
        full_energy_mj: What it takes for a frame, None where that is not known.
        cut: Whether the time limit cut the measurements.
    """
    finalists = {candidate.score.gates for candidate in choice.candidates}
    correction = finals.correction(cost)

    def expect(subnets: Iterable[Gates]) -> list[Score]:
        """Of subnets that were not measured, as slow as those that were make them."""
        left = [gates for gates in dict.fromkeys(subnets) if gates not in finalists]
        return [replace(shortlist.score(gates), latency_ms=cost(gates) * correction) for gates in left]

    listed = expect([*shortlist.pool, *shortlist.ladder])
    others = [candidate.score for candidate in choice.candidates] + listed
    return AdaptResult(
        choice,
        _frontier(choice.score, others, limit_ms, lambda score, ms: trust.allows(score.gates, ms / correction)),
        (*choice.candidates, *_early(listed, expect(shortlist.fallen), shortlist.fallen)),
        finals.measurements,
        full_latency_ms,
        full_energy_mj,
        shortlist.ended_early or cut,
    )


def without_unusable(result: AdaptResult, unusable: Collection[Gates], budget: Budget) -> AdaptResult:
    """What was found without subnets whose outputs were unusable in the loop, whatever they were on these images.

    Raises:
        BudgetError: One of them was chosen, and none of the others meets the budget.
    """
    found = {candidate.score.gates for candidate in result.candidates} & set(unusable)
    if not found:
        return result
    chosen, frontier = result.choice.score, result.frontier.without(found)
    said = "its outputs were unusable in the loop"
    fates: dict[Gates, tuple[Fate, str]] = dict.fromkeys(found, ("unusable", said))
    choice = result.choice
    if chosen.gates in found:
        limit_ms = budget.limit_ms(result.full_latency_ms, result.full_energy_mj)
        best = None if frontier is None else frontier.best(limit_ms)
        if best is None:
            raise BudgetError(
                f"no usable subnet meets the budget of {budget}: of {chosen.gates} {said.removeprefix('its ')}",
                hint="allow more time, or run 'nnf-edge verify' on the bundle",
                fastest="" if frontier is None else str(frontier.fastest.gates),
                latency_ms=None if frontier is None else frontier.fastest.latency_ms,
            )
        choice = replace(choice, score=best, reason=f"{best.gates} in place of {chosen.gates}: {said}")
        fates[best.gates] = ("chosen", choice.reason)
    candidates = [
        replace(candidate, fate=fates[candidate.score.gates][0], reason=fates[candidate.score.gates][1])
        if candidate.score.gates in fates
        else candidate
        for candidate in result.candidates
    ]
    return replace(result, choice=choice, frontier=frontier or result.frontier, candidates=tuple(candidates))


def _frontier(chosen: Score, others: list[Score], limit_ms: float, allows: Allows) -> Frontier:
    """Of those within the limit the chosen one is the best.

    What the images could not tell from it must not look better in the loop than it did here.
    """
    ranked = _ranked([chosen, *(score for score in others if score.gates != chosen.gates)], allows)
    own = next(score for score in ranked if score.gates == chosen.gates)
    rivals = [score for score in ranked if score.latency_ms <= limit_ms and score.quality >= own.quality]
    return Frontier.of([own, *(score for score in ranked if score not in rivals and not score.dominates(own))])


def _ranked(scores: list[Score], allows: Allows) -> list[Score]:
    """Slow to fast; what looks better than a slower subnet and is not trusted in its place is put just below it."""
    ranked: list[Score] = []
    for score in sorted(scores, key=lambda score: -score.latency_ms):
        slower = (other for other in ranked if other.latency_ms > score.latency_ms)
        highest = min((other.quality for other in slower if not allows(score, other.latency_ms)), default=math.inf)
        if score.quality >= highest:
            quality = max(0.0, highest - _BELOW)
            score = replace(score, quality=quality, low=min(score.low, quality))
        ranked.append(score)
    return ranked


def _early(listed: list[Score], fallen: list[Score], reasons: Mapping[Gates, str]) -> list[Candidate]:
    """What was not measured, and why, by quality."""
    known = {score.gates for score in listed}
    early = [Candidate(score, "unmeasured", "evaluated for the frontier") for score in listed]
    early += [Candidate(score, "fell early", reasons[score.gates]) for score in fallen if score.gates not in known]
    return sorted(early, key=lambda candidate: (-candidate.score.samples, -candidate.score.quality))
