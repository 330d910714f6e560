"""Which subnets are really measured, and in which order: small groups, each aimed by what was measured before.

The first group is what the search on the table holds best. A table is wrong by some percent and a machine has noisy
minutes, so every further group is aimed anew: at what the table, corrected by the measurements so far, puts inside the
limit, and that is better than the subnet that would be chosen now. It steps down along the frontier when nothing fitted
and up when there is room left.
"""

from __future__ import annotations

from edge_runtime.adaptation.choice import Choice
from edge_runtime.adaptation.finals import Finals
from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.adaptation.shortlist import Shortlist
from edge_runtime.adaptation.trust import Trust
from edge_runtime.additive import AdditiveCost, fastest
from edge_runtime.errors import BudgetError
from edge_runtime.gates import Gates
from edge_runtime.seeds import near_budget_seeds

__all__ = ["Groups"]

WELL_INSIDE = 0.9
"""Share of the limit that one subnet of the first group is predicted to keep, in case the others are too slow."""

STEP = 0.93
"""By how much a group is aimed lower for each one before it in which nothing fitted, beyond the correction."""

SIZE = 3
"""Subnets of every group but the first."""


class Groups:
    """Proposes subnets to measure; measures nothing itself.

    Args:
        shortlist: What was evaluated on the images.
        finals: What was measured so far.
        cost: Predicted p95 of a subnet, milliseconds.
        prior: Expected damage of a subnet, from the bundle.
        trust: What may be chosen.
        current: The active subnet.
        plan: How much is looked at.
    """

    def __init__(
        self,
        shortlist: Shortlist,
        finals: Finals,
        *,
        cost: AdditiveCost,
        prior: AdditiveCost,
        trust: Trust,
        current: Gates,
        plan: AdaptPlan,
    ) -> None:
        self._shortlist, self._finals = shortlist, finals
        self._cost, self._prior, self._trust, self._current, self._plan = cost, prior, trust, current, plan

    def first(self, limit_ms: float) -> list[Gates]:
        """The best by quality within `limit_ms`, one that is predicted well inside it, the current and the full subnet.

        Args:
            limit_ms: Predicted p95 up to which subnets were proposed, milliseconds.
        """
        within = self._evaluated(limit_ms)
        group = dict.fromkeys(within[: self._plan.finalists] or [fastest(self._cost)])
        inside = [gates for gates in self._evaluated(WELL_INSIDE * limit_ms) if gates not in group]
        return list(group | dict.fromkeys([*inside[:1], self._current, self._current.space.default]))

    def better(self, limit_ms: float, choice: Choice | None, failed: int) -> list[Gates]:
        """Subnets that should fit by the corrected table, and are better than what fits; best first, maybe none.

        Args:
            limit_ms: The latency limit, milliseconds.
            choice: What would be chosen now; None where nothing that is trusted fitted.
            failed: After how many groups nothing did.
        """
        correction = self._finals.correction(self._cost, self._plan.headroom)
        aim_ms = limit_ms / correction * (1.0 if choice else STEP ** (failed - 1))
        aim_ms = min(aim_ms, 2 * self._cost(self._current.space.default))  # no limit is no reason to plan without end
        known = [gates for gates in self._evaluated(aim_ms) if not self._finals.has(gates)]
        if choice is not None:
            likely = self._shortlist.likely([*known, choice.best.gates])
            known = [gates for gates in known if likely[gates] > likely[choice.best.gates]]
        group = dict.fromkeys([*known[: SIZE - 1], *self._planned(aim_ms, choice), *known])
        return list(group)[:SIZE]

    def fastest(self) -> list[Gates]:
        """The fastest subnet by the table, and what may really be as fast."""
        quickest = fastest(self._cost)
        limit_ms = 1.1 * self._cost(quickest)
        near = near_budget_seeds(quickest.space, self._cost, self._cost, limit_ms, SIZE, self._plan.seed)
        group = list(dict.fromkeys([quickest, *near]))[:SIZE]
        return [gates for gates in group if not self._finals.has(gates)]

    def _evaluated(self, limit_ms: float) -> list[Gates]:
        """What the shortlist evaluated, the ladder on fewer images, and is trusted within a limit; best first.

        Of equals those of the least expected damage: where the images tell nothing, they are the ones to measure.
        """
        listed = [*self._shortlist.pool, *self._shortlist.ladder]
        most = self._trust.most_damage(limit_ms)
        within = [g for g in dict.fromkeys(listed) if self._cost(g) <= limit_ms and self._prior(g) <= most]
        likely = self._shortlist.likely(listed)
        return sorted(within, key=lambda gates: (-likely[gates], self._prior(gates)))

    def _planned(self, aim_ms: float, choice: Choice | None) -> list[Gates]:
        """The best by the prior within `aim_ms`, where the prior holds them for better than what fits."""
        try:
            fresh = near_budget_seeds(self._current.space, self._cost, self._prior, aim_ms, 2, self._plan.seed)
        except BudgetError:
            return []
        if choice is not None:
            least = self._prior(choice.best.gates)
            fresh = [gates for gates in fresh if self._prior(gates) < least]
        return [gates for gates in fresh if not self._finals.has(gates)]
