"""The choice among measured finalists: pure, so that every rule can be tested without a clock or a device.

1. A finalist is feasible when the bound of its p95, its memory and its energy are inside the budget.
2. Feasible finalists that the bundle's prior does not trust (see `trust`) fall; where it trusts none, all but the one
   of which it expects the least damage.
3. Of the rest that no other is significantly better than, the best is the one with the highest likely quality, of
   equals the fastest. That is the measured quality, drawn towards what all scores together say of each alternative: of
   several subnets on few images the one with the highest score was lucky.
4. The current subnet stays where it is among them and the images cannot tell it from the best.
5. Otherwise the cheapest of them is taken that the images cannot tell from the best *and* whose quality is
   within `INDIFFERENCE` of it: on few images very different subnets are not significantly different, and to prefer the
   cheaper of those would give quality away.

So no trusted feasible finalist is ever significantly better than the chosen one, on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge_runtime.adaptation.status import Candidate, Fate
from edge_runtime.gates import Gates
from edge_runtime.objectives import MIB, Budget, Score
from edge_runtime.quality import Comparison

__all__ = ["INDIFFERENCE", "Choice", "choose"]

INDIFFERENCE = 0.003
"""Difference of quality that is not worth a slower subnet where the images cannot tell the two apart."""

Bound = Callable[[Gates], float]
Energy = Callable[[Gates], float | None]
Compare = Callable[[Gates, Gates], Comparison]
Likely = Callable[[Gates], float]
Damage = Callable[[Gates], float]


@dataclass(frozen=True, slots=True)
class Choice:
    """The subnet to run, why, and what became of each finalist."""

    score: Score
    """The chosen finalist."""

    best: Score
    """The trusted feasible finalist with the highest likely quality; often the chosen one."""

    trusted: bool
    """Whether the prior trusts any feasible finalist; else the chosen one is that of the least expected damage."""

    reason: str
    """Why it, for people."""

    candidates: tuple[Candidate, ...]
    """Every finalist with its fate, in the order given."""


def choose(
    finalists: Sequence[Score],
    *,
    current: Gates,
    budget: Budget,
    limit_ms: float,
    bound_ms: Bound,
    compare: Compare,
    energy_mj: Energy = lambda gates: None,
    likely: Likely | None = None,
    damage: Damage = lambda gates: 0.0,
    most_damage: float = math.inf,
) -> Choice | None:
    """Pick one measured finalist; None where none is feasible.

    Args:
        finalists: Scores with a measured p95, of different subnets.
        current: The active subnet; it is kept in doubt if it is among the finalists, feasible and trusted.
        budget: What must be met.
        limit_ms: The latency limit that the budget comes to on this machine; inf where there is none.
        bound_ms: What must be inside the latency limit: the p95 of a subnet with what its measurement leaves open.
        compare: Quality of one subnet minus that of another on the same images.
        energy_mj: Measured energy of a frame; None where it is not known, which violates no limit.
        likely: The quality that a subnet most likely has; None takes the measured one.
        damage: What the bundle's prior expects of a subnet, lower is better.
        most_damage: Up to which a subnet is trusted.
    """
    worth = {score.gates: score.quality if likely is None else likely(score.gates) for score in finalists}
    trial = _Trial(current, budget, limit_ms, bound_ms, compare, energy_mj, worth, damage, most_damage)
    feasible = [score for score in finalists if trial.fits(score)]
    if not feasible:
        return None
    trusted = [score for score in feasible if trial.trusts(score)]
    feasible = trusted or [min(feasible, key=lambda score: damage(score.gates))]
    equals = trial.unbeaten(feasible)
    best = max(equals, key=lambda score: (worth[score.gates], -score.latency_ms))
    chosen = trial.among(equals, best)
    candidates = tuple(trial.fate(score, chosen, best) for score in finalists)
    return Choice(chosen, best, bool(trusted), trial.reason(chosen, best), candidates)


@dataclass(frozen=True, slots=True)
class _Trial:
    """What every finalist is judged by."""

    current: Gates
    budget: Budget
    limit_ms: float
    bound_ms: Bound
    compare: Compare
    energy_mj: Energy
    worth: Mapping[Gates, float]
    damage: Damage
    most_damage: float

    def trusts(self, score: Score) -> bool:
        """Whether the prior expects no more damage than is trusted."""
        return self.damage(score.gates) <= self.most_damage

    def fits(self, score: Score) -> bool:
        """Whether a finalist is feasible."""
        in_time = self.bound_ms(score.gates) <= self.limit_ms
        return in_time and (score.peak_bytes or 0) <= self.budget.memory_bytes and not self.drains(score)

    def drains(self, score: Score) -> bool:
        """Whether a finalist takes more energy than the budget allows."""
        most, taken = self.budget.energy_mj, self.energy_mj(score.gates)
        return most is not None and taken is not None and taken > most

    def unbeaten(self, feasible: Sequence[Score]) -> list[Score]:
        """Those that no other is significantly better than; that of the highest quality is always one."""

        def beaten(score: Score) -> bool:
            return any(self.compare(other.gates, score.gates).better for other in feasible if other is not score)

        return [score for score in feasible if not beaten(score)]

    def among(self, equals: Sequence[Score], best: Score) -> Score:
        """The current one, or the cheapest of those that are worth about as much as the best."""
        for score in equals:
            if score.gates == self.current:
                return score
        near = [score for score in equals if self.worth[best.gates] - self.worth[score.gates] <= INDIFFERENCE]
        return min(near, key=lambda score: (score.latency_ms, -score.quality))

    def fate(self, score: Score, chosen: Score, best: Score) -> Candidate:
        """What became of a finalist, and why."""
        p95, limit = f"measured p95 {score.latency_ms:.2f} ms", f"> {self.limit_ms:.2f} ms"
        if score is chosen:
            return Candidate(score, "kept" if score.gates == self.current else "chosen", p95)
        if not self.fits(score) and self.bound_ms(score.gates) > self.limit_ms:
            bound = f", up to {self.bound_ms(score.gates):.2f} ms with what is uncertain,"
            within = score.latency_ms <= self.limit_ms
            fate: Fate = "reference" if score.gates.is_default else "uncertain" if within else "over budget"
            return Candidate(score, fate, f"{p95}{bound if within else ''} {limit}")
        if self.drains(score):
            return Candidate(score, "over budget", f"{self.energy_mj(score.gates):.1f} mJ > {self.budget}")
        if not self.fits(score):
            return Candidate(
                score, "over budget", f"peak memory {(score.peak_bytes or 0) / MIB:.0f} MiB > {self.budget}"
            )
        if not self.trusts(score):
            expected = f"{self.damage(score.gates):.3g} > {self.most_damage:.3g}"
            return Candidate(score, "not trusted", f"expected damage on clean images {expected}")
        gap = self.compare(chosen.gates, score.gates)
        figures = f"{_points(-gap.difference)} against the chosen ({_points(-gap.high)} to {_points(-gap.low)})"
        if gap.better:
            return Candidate(score, "worse", figures)
        if score is best:
            return Candidate(score, "indistinguishable", f"{figures}: the images cannot tell, {self._aside(chosen)}")
        if score.quality > chosen.quality:
            likely = self.worth[score.gates] > self.worth[chosen.gates]
            aside = self._aside(chosen) if likely else "more than all that was evaluated makes likely"
            figures += f": {aside}"
        return Candidate(score, "lost", figures)

    def _aside(self, chosen: Score) -> str:
        return "the current one stays" if chosen.gates == self.current else "the cheaper one is taken"

    def reason(self, chosen: Score, best: Score) -> str:
        """Why the chosen one, for people."""
        taken = self.energy_mj(chosen.gates)
        room = f"p95 {chosen.latency_ms:.2f} ms" + (
            f" within {self.limit_ms:.2f} ms" if self.limit_ms < math.inf else ""
        )
        room += "" if taken is None else f" and {taken:.1f} mJ"
        if not self.trusts(chosen):
            return f"{chosen.gates}, {room}: the bundle trusts nothing that fits, and expects the least damage of it"
        if chosen is best:
            stays = "stays the best" if chosen.gates == self.current else "is the best"
            what = f"{stays} of the measured and trusted subnets that fit"
            return f"{chosen.gates} {what}: quality {chosen.quality:.3f}, {room}"
        gap = self.compare(best.gates, chosen.gates)
        doubt = f"cannot tell it from {best.gates} on {gap.samples} images ({_points(gap.low)} to {_points(gap.high)})"
        if chosen.gates == self.current:
            return f"kept {chosen.gates}, {room}: {doubt}"
        return f"{chosen.gates}, {room}, is the cheaper: {doubt}"


def _points(difference: float) -> str:
    """A difference of quality in points of a hundred."""
    return f"{100 * difference:+.2f} points"
