"""What an adaptation leaves behind for the next start: gates, scores and the latency table. Never a pixel."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

from edge_runtime.checks import fields, positive
from edge_runtime.errors import GateError, UsageError
from edge_runtime.gates import Gates, GateSpace
from edge_runtime.measure import LatencyModel
from edge_runtime.objectives import Budget, Frontier, Score
from edge_runtime.state import StateDir

__all__ = ["Memory", "memory_name"]

_ALWAYS = ("table", "active", "frontier", "full_latency_ms", "budget")

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
    """p95 of the full subnet as the last search expected it, milliseconds: its measured median times the tail of all
    that was measured."""

    budget: Budget | None = None
    """The budget that it was adapted to."""

    full_energy_mj: float | None = None
    """What the full subnet takes for a frame at the median power of what was measured, millijoules; None where no power
    rail was read."""

    unusable: frozenset[Gates] = frozenset()
    """Subnets whose outputs were unusable in the loop; none of them is active or on the frontier."""

    def limit_ms(self, budget: Budget) -> float | None:
        """The latency limit of a budget on this machine, milliseconds; None without one, or where it is not known."""
        if self.full_latency_ms is None:
            return budget.latency_ms
        limit_ms = budget.limit_ms(self.full_latency_ms, self.full_energy_mj)
        if self.active is not None and budget == self.budget and budget.energy_mj is not None:
            # It was measured to keep the energy, which counts for more than the time that stands for it.
            limit_ms = min(max(limit_ms, self.active.latency_ms), budget.limit_ms(self.full_latency_ms))
        return None if math.isinf(limit_ms) else limit_ms

    def start(self, budget: Budget | None) -> tuple[Gates, str] | None:
        """The subnet to start with under a budget, and why; None where nothing is remembered that helps.

        None as the budget takes up the last adaptation as it was; a budget that limits no time asks for the full
        subnet.
        """
        if self.frontier is None:
            return None
        if self.active is not None and (budget is None or budget == self.budget):
            return self.active.gates, "restored from the last adaptation"
        limit_ms = self.limit_ms(budget or self.budget or Budget())
        if limit_ms is None:
            return None
        score = self.frontier.best(limit_ms) or self.frontier.fastest
        return score.gates, f"from the remembered frontier: p95 {score.latency_ms:.2f} ms for {limit_ms:.2f} ms"

    def without(self, unusable: frozenset[Gates]) -> Memory:
        """The same where these subnets are unusable; where one was active, none is remembered as that."""
        active = None if self.active is None or self.active.gates in unusable else self.active
        frontier = self.frontier and self.frontier.without(unusable)
        return replace(self, active=active, frontier=frontier, unusable=unusable)

    def save(self, state: StateDir, name: str) -> None:
        """Write it, atomically. Raises `StateError` when the disk refuses."""
        body: dict[str, Any] = {
            "table": self.table.to_json(),
            "active": None if self.active is None else self.active.to_json(),
            "frontier": None if self.frontier is None else self.frontier.to_json(),
            "full_latency_ms": self.full_latency_ms,
            "budget": None if self.budget is None else self.budget.to_json(),
            "full_energy_mj": self.full_energy_mj,
            "unusable": [gates.to_json() for gates in sorted(self.unusable, key=Gates.vector)],
        }
        state.write_json(name, body)

    @classmethod
    def read(cls, state: StateDir, name: str, space: GateSpace) -> Memory | None:
        """Inverse of `save`; None where there is nothing, or nothing that fits this gate space."""
        body = state.read_json(name)
        if body is None:
            return None
        try:
            values = fields("memory", body, required=_ALWAYS, optional=("full_energy_mj", "unusable"))
            full_ms, full_mj = values["full_latency_ms"], values.get("full_energy_mj")
            return cls(
                LatencyModel.from_json(space, values["table"]),
                None if values["active"] is None else Score.from_json(space, values["active"]),
                None if values["frontier"] is None else Frontier.from_json(space, values["frontier"]),
                None if full_ms is None else positive("full_latency_ms", full_ms),
                None if values["budget"] is None else Budget.from_json(values["budget"]),
                None if full_mj is None else positive("full_energy_mj", full_mj),
                frozenset(space.from_json(item) for item in _listed(values.get("unusable", []))),
            )
        except (UsageError, GateError):
            return None


def _listed(value: object) -> list[object]:
    if not isinstance(value, list):
        raise UsageError("the unusable subnets in JSON are a list")
    return value
