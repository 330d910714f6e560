"""The latency model: what a subnet will take on this machine, as a sum of its decisions, and how that drifts."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from typing import Any, Literal

from edge_runtime.additive import AdditiveCost
from edge_runtime.checks import fields, finite
from edge_runtime.errors import UsageError
from edge_runtime.gates import Gates, GateSpace

__all__ = ["Drift", "LatencyModel", "Method"]

DRIFT_FRAMES = 32
"""Frames over which the drift follows the machine."""

SETTLE_S = 0.5
"""After a swap frames do not count for so long: the subnet may not have a session of its own yet."""

DRIFT_STEP = math.log(1.5)
"""What one frame may say at most: a single one that was interrupted for long must not count for many."""

Method = Literal["kernels", "timing"]
METHODS: tuple[Method, ...] = ("kernels", "timing")


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Predicted latency of every subnet of one bundle on one machine. Raises `UsageError` when built invalid."""

    cost: AdditiveCost
    """Median latency in milliseconds, already scaled to whole runs as the application makes them."""

    p95_ratio: float
    """95th percentile over median, 1 or more; what a budget on the p95 leaves for the median."""

    method: Method
    """`kernels`: from a profile of leaf kernels. `timing`: from whole runs alone, less exact."""

    error: float
    """Median relative error on the subnets that the scale was fitted to, 0 or more. Example: 0.02."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "p95_ratio", finite("p95_ratio", self.p95_ratio))
        object.__setattr__(self, "error", finite("error", self.error))
        if self.p95_ratio < 1 or self.error < 0:
            raise UsageError(f"p95_ratio {self.p95_ratio} is below 1, or error {self.error} below 0")
        if self.method not in METHODS:
            raise UsageError(f"method {str(self.method)[:40]!r} is not one of {', '.join(METHODS)}")

    @property
    def p95_cost(self) -> AdditiveCost:
        """The 95th percentile in milliseconds as an additive cost, for planning within a budget."""
        return self.cost.scaled(self.p95_ratio)

    def predict_ms(self, gates: Gates) -> float:
        """Predicted median latency of one frame, milliseconds."""
        return self.cost(gates)

    def predict_p95_ms(self, gates: Gates) -> float:
        """Predicted 95th percentile, milliseconds."""
        return self.cost(gates) * self.p95_ratio

    def drifted(self, factor: float) -> LatencyModel:
        """The same on a machine that has become slower by a factor above 0."""
        return replace(self, cost=self.cost.scaled(factor))

    def to_json(self) -> dict[str, Any]:
        """The model as JSON types, without the gate space."""
        return {
            "base_ms": self.cost.base,
            "entries_ms": [list(row) for row in self.cost.entries],
            "p95_ratio": self.p95_ratio,
            "method": self.method,
            "error": self.error,
        }

    @classmethod
    def from_json(cls, space: GateSpace, body: object) -> LatencyModel:
        """Inverse of `to_json`. Raises `UsageError`, never another exception, whatever the body."""
        values = fields("latency model", body, required=("base_ms", "entries_ms", "p95_ratio", "method", "error"))
        rows = values["entries_ms"]
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise UsageError("entries_ms is not a list of lists")
        cost = AdditiveCost(space, values["base_ms"], tuple(tuple(row) for row in rows))
        return cls(cost, values["p95_ratio"], values["method"], values["error"])


@dataclass(frozen=True, slots=True)
class _Served:
    """What is served, and since when."""

    table: LatencyModel
    gates: Gates
    predicted_ms: float
    since_s: float


class Drift:
    """How much slower a machine is now than when its table was made, from the latencies of served frames. Thread-safe.

    A moving mean of the logarithms of measured over predicted, each clipped. Heat, another governor, or other work move
    it, frames that run beside each other too.
    """

    def __init__(self) -> None:
        self._log, self._frames = 0.0, 0
        self._last: _Served | None = None
        self._lock = threading.Lock()

    @property
    def factor(self) -> float | None:
        """Measured over predicted, above 0; None before `DRIFT_FRAMES` frames counted."""
        return math.exp(self._log) if self._frames >= DRIFT_FRAMES else None

    def add(self, table: LatencyModel, gates: Gates, latency_ms: float, time_s: float) -> None:
        """Take one frame of the active subnet into account; a microsecond. `time_s` is of any clock that only grows."""
        with self._lock:
            last = self._last
            same = last is not None and last.table is table and (last.gates is gates or last.gates == gates)
            if last is None or not same:
                last = self._last = _Served(table, gates, max(table.predict_ms(gates), 1e-6), time_s)
            if time_s - last.since_s < SETTLE_S:
                return
            self._frames += 1
            away = math.log(max(latency_ms, 1e-6) / last.predicted_ms) - self._log
            # The first frames count as much as those that are to come, so that the start is a plain mean.
            self._log += max(-DRIFT_STEP, min(DRIFT_STEP, away)) / min(self._frames, DRIFT_FRAMES)
