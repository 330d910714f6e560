"""What the loop's own frames say while a search measures beside them.

A search in the background gives way to everything. On a busy machine its runs are held up where the loop's are not, and
by what it measured only a poor subnet may seem to fit, although the active one answers all frames in time.
"""

from __future__ import annotations

from collections import deque

from edge_runtime.adaptation import AdaptResult
from edge_runtime.adaptation.plan import HEADROOM
from edge_runtime.gates import Gates
from edge_runtime.objectives import RUNS_NEEDED, Budget, percentile

__all__ = ["Witness"]

KEPT_FRAMES = 4000

CONTRADICTION = 1.5
"""From so many times the loop's p95 on, that of the search was held up; a slice among frames is slower by less."""


class Witness:
    """The frames that one subnet answered while finalists were measured."""

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self._latencies_ms: deque[float] = deque(maxlen=KEPT_FRAMES)

    def add(self, gates: Gates, latency_ms: float) -> None:
        """A frame was answered; those of other subnets do not count."""
        if gates == self._gates:
            self._latencies_ms.append(latency_ms)

    def objection(self, result: AdaptResult, budget: Budget) -> str | None:
        """Why a result is not to be trusted; None where nothing speaks against it, or too few frames came.

        It is where the subnet kept the limit in the loop with room to spare, was measured far above that and above the
        limit, and a worse one is chosen. Only for a limit in milliseconds without one on the energy: a share is one of
        what was measured just as busy.
        """
        limit_ms, latencies_ms = budget.latency_ms, sorted(self._latencies_ms.copy())
        own = next((c.score for c in result.candidates if c.score.gates == self._gates and c.score.measured), None)
        if own is None or limit_ms is None or budget.energy_mj is not None or len(latencies_ms) < RUNS_NEEDED[95]:
            return None
        p95_ms, chosen = percentile(latencies_ms, 95), result.choice.score
        in_time = p95_ms <= limit_ms * (1 - HEADROOM) and (own.peak_bytes or 0) <= budget.memory_bytes
        held_up = own.latency_ms > limit_ms and own.latency_ms >= CONTRADICTION * p95_ms
        if not (in_time and held_up and chosen.quality < own.quality):
            return None
        return (
            f"{chosen.gates} would be worse than {self._gates}, which seemed too slow in the search "
            f"(p95 {own.latency_ms:.2f} ms) but kept {budget} in the loop (p95 {p95_ms:.2f} ms)"
        )
