"""What the loop's own frames say while a search measures beside them.

A search in the background gives way to everything. On a busy machine its runs are held up where the loop's are not, and
by what it measured only a poor subnet may seem to fit, although the active one answers all frames in time.
"""

from __future__ import annotations

from collections import deque

from edge_runtime.adaptation import AdaptResult
from edge_runtime.adaptation.status import Candidate, Fate
from edge_runtime.gates import Gates
from edge_runtime.objectives import RUNS_NEEDED, Budget, percentile

__all__ = ["Witness"]

KEPT_FRAMES = 4000

TOO_SLOW: tuple[Fate, ...] = ("over budget", "uncertain", "reference")
"""Fates of finalists that a search took for too slow, or perhaps too slow."""


class Witness:
    """The frames that one subnet answered while a search ran."""

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self._latencies_ms: deque[float] = deque(maxlen=KEPT_FRAMES)

    def add(self, gates: Gates, latency_ms: float) -> None:
        """A frame was answered; those of other subnets do not count."""
        if gates == self._gates:
            self._latencies_ms.append(latency_ms)

    def objection(self, result: AdaptResult, budget: Budget) -> str | None:
        """Why a result is not to be trusted; None where nothing speaks against it, or too few frames came.

        It is where the subnet kept the limit in the loop, seemed too slow in the search, and a worse one is chosen.
        Only for a limit in milliseconds: a share of the full subnet's time is one of what was measured just as busy.
        """
        latencies_ms = sorted(self._latencies_ms.copy())
        own = next((c for c in result.candidates if c.score.gates == self._gates), None)
        if own is None or budget.latency_ms is None or len(latencies_ms) < RUNS_NEEDED[95]:
            return None
        p95_ms = percentile(latencies_ms, 95)
        if p95_ms > budget.latency_ms or not self._was_refused(own, result):
            return None
        return (
            f"{result.choice.score.gates} would be worse than {self._gates}, which seemed too slow in the search "
            f"(p95 {own.score.latency_ms:.2f} ms) but kept {budget} in the loop (p95 {p95_ms:.2f} ms)"
        )

    def _was_refused(self, own: Candidate, result: AdaptResult) -> bool:
        """Whether a worse subnet is chosen because this one seemed too slow."""
        chosen = result.choice.score
        return own.fate in TOO_SLOW and chosen.gates != self._gates and chosen.quality < own.score.quality
