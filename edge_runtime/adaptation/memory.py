"""What an adaptation leaves behind for the next start: gates, scores and the latency table. Never a pixel."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from edge_runtime.checks import fields, positive
from edge_runtime.errors import GateError, UsageError
from edge_runtime.gates import Gates, GateSpace
from edge_runtime.measure import LatencyModel
from edge_runtime.objectives import Budget, Frontier, Score
from edge_runtime.state import StateDir

__all__ = ["Memory", "memory_name"]


TABLE_FORMAT = 2
"""Of how tables are made; what an older one says is not taken up."""


def memory_name(digest: str, *parts: str) -> str:
    """File name for one bundle on one machine: another runtime, processor or thread count has another file."""
    key = chr(0).join((str(TABLE_FORMAT), digest, *parts))
    return f"adapt-{digest[:16]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


@dataclass(frozen=True, slots=True)
class Memory:
    """The outcome of the last adaptation, or the table alone before there was one."""

    table: LatencyModel
    """Predicted latencies of this machine."""

    active: Score | None = None
    """The chosen subnet."""

    frontier: Frontier | None = None
    """The subnets worth having."""

    full_latency_ms: float | None = None
    """Measured p95 of the full subnet, milliseconds."""

    budget: Budget | None = None
    """The budget that it was adapted to."""

    def limit_ms(self, budget: Budget) -> float | None:
        """The latency limit of a budget on this machine, milliseconds; None without one, or where it is not known."""
        if budget.latency_ms is None and (budget.fraction is None or self.full_latency_ms is None):
            return None
        return budget.limit_ms(self.full_latency_ms or 0.0)

    def start(self, budget: Budget | None) -> tuple[Gates, str] | None:
        """The subnet to start with under a budget, and why; None where nothing is remembered that helps.

        None as the budget takes up the last adaptation as it was; a budget without a latency limit asks for the full
        subnet.
        """
        if self.active is None or self.frontier is None:
            return None
        if budget is None or budget == self.budget:
            return self.active.gates, "restored from the last adaptation"
        limit_ms = self.limit_ms(budget)
        if limit_ms is None:
            return None
        score = self.frontier.best(limit_ms) or self.frontier.fastest
        return score.gates, f"from the remembered frontier: p95 {score.latency_ms:.2f} ms for {limit_ms:.2f} ms"

    def save(self, state: StateDir, name: str) -> None:
        """Write it, atomically. Raises `StateError` when the disk refuses."""
        body: dict[str, Any] = {
            "table": self.table.to_json(),
            "active": None if self.active is None else self.active.to_json(),
            "frontier": None if self.frontier is None else self.frontier.to_json(),
            "full_latency_ms": self.full_latency_ms,
            "budget": None if self.budget is None else self.budget.to_json(),
        }
        state.write_json(name, body)

    @classmethod
    def read(cls, state: StateDir, name: str, space: GateSpace) -> Memory | None:
        """Inverse of `save`; None where there is nothing, or nothing that fits this gate space."""
        body = state.read_json(name)
        if body is None:
            return None
        try:
            values = fields("memory", body, required=("table", "active", "frontier", "full_latency_ms", "budget"))
            full_ms = values["full_latency_ms"]
            return cls(
                LatencyModel.from_json(space, values["table"]),
                None if values["active"] is None else Score.from_json(space, values["active"]),
                None if values["frontier"] is None else Frontier.from_json(space, values["frontier"]),
                None if full_ms is None else positive("full_latency_ms", full_ms),
                None if values["budget"] is None else Budget.from_json(values["budget"]),
            )
        except (UsageError, GateError):
            return None
