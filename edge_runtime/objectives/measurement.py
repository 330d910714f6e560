"""How long one subnet took on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from edge_runtime.checks import fields, whole, word
from edge_runtime.errors import UsageError
from edge_runtime.gates import Gates, GateSpace
from edge_runtime.objectives.percentiles import RUNS_NEEDED, percentile, upper_rank

__all__ = ["Measurement", "pooled_tail"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """How long one subnet took on this machine, with its raw samples. Raises `UsageError` when built invalid."""

    gates: Gates
    """The subnet that ran."""

    latencies_ns: tuple[int, ...]
    """Every recorded run in the order of measurement, nanoseconds, at least one."""

    warmups: int
    """Runs of this subnet that were made before and not recorded."""

    first_ns: int
    """The first run of this subnet in this measurement, nanoseconds; in a fresh session it also allocates."""

    threads: int
    """Threads inside an operator, at least 1."""

    backend: str
    """Name of the session. Example: ``onnxruntime-portable``."""

    peak_bytes: int | None
    """Peak resident memory of the process at the end, bytes; None where the machine does not tell."""

    taken_at: str
    """Wall-clock time of the end in ISO 8601. Example: ``2026-11-22T12:25:00+00:00``."""

    def __post_init__(self) -> None:
        latencies = tuple(whole("a latency in ns", value) for value in self.latencies_ns)
        if not latencies:
            raise UsageError("a measurement has no runs", hint="measure at least one run")
        object.__setattr__(self, "latencies_ns", latencies)
        object.__setattr__(self, "warmups", whole("warmups", self.warmups))
        object.__setattr__(self, "first_ns", whole("first_ns", self.first_ns))
        object.__setattr__(self, "threads", whole("threads", self.threads, low=1))
        if self.peak_bytes is not None:
            object.__setattr__(self, "peak_bytes", whole("peak_bytes", self.peak_bytes))
        word("backend", self.backend)
        try:  # Python 3.10 does not read the Z that ISO 8601 allows.
            datetime.fromisoformat(word("taken_at", self.taken_at).replace("Z", "+00:00"))
        except ValueError as error:
            raise UsageError(f"taken_at {self.taken_at[:40]!r} is not a time in ISO 8601") from error

    @property
    def mean_ms(self) -> float:
        """Arithmetic mean of the recorded runs, milliseconds."""
        return sum(self.latencies_ns) / len(self.latencies_ns) / 1e6

    @property
    def p50_ms(self) -> float:
        """Nearest-rank median, milliseconds, however few the runs."""
        return percentile(sorted(self.latencies_ns), 50) / 1e6

    @property
    def p95_ms(self) -> float:
        """Nearest-rank 95th percentile, milliseconds, however few the runs: see `percentile_ms` before quoting it."""
        return percentile(sorted(self.latencies_ns), 95) / 1e6

    def percentile_ms(self, q: int) -> float | None:
        """The nearest-rank percentile in milliseconds, or None where there are fewer runs than it takes to state it.

        Raises:
            UsageError: `q` is not one of `RUNS_NEEDED`.
        """
        if q not in RUNS_NEEDED:
            raise UsageError(f"percentile {q} is not offered", hint=f"one of {', '.join(map(str, RUNS_NEEDED))}")
        if len(self.latencies_ns) < RUNS_NEEDED[q]:
            return None
        return percentile(sorted(self.latencies_ns), q) / 1e6

    def upper_percentile_ms(self, q: float) -> float | None:
        """An upper bound of the true percentile with 99 % confidence, milliseconds; None where the runs are too few."""
        rank = upper_rank(len(self.latencies_ns), q)
        return None if rank is None else sorted(self.latencies_ns)[rank - 1] / 1e6

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types, raw samples included."""
        return {
            "gates": self.gates.to_json(),
            "latencies_ns": list(self.latencies_ns),
            "warmups": self.warmups,
            "first_ns": self.first_ns,
            "threads": self.threads,
            "backend": self.backend,
            "peak_bytes": self.peak_bytes,
            "taken_at": self.taken_at,
        }

    @classmethod
    def from_json(cls, space: GateSpace, body: object) -> Measurement:
        """Inverse of `to_json`. Raises `UsageError`, never another exception, whatever the body."""
        values = fields("measurement", body, required=cls.__slots__)
        if not isinstance(values["latencies_ns"], list):
            raise UsageError("latencies_ns is not a list")
        gates = space.from_json(values.pop("gates"))
        return cls(gates, tuple(values.pop("latencies_ns")), **values)


def pooled_tail(measurements: Iterable[Measurement], q: int = 95) -> float:
    """A percentile over the median, 1 or more, of all runs together, each over the median of its own subnet.

    What disturbs a machine disturbs every subnet on it, so this is steadier than the percentile of any one of them.
    """
    shares: list[float] = []
    for measurement in measurements:
        p50_ns = measurement.p50_ms * 1e6
        shares.extend(ns / p50_ns for ns in measurement.latencies_ns)
    return max(1.0, percentile(sorted(shares), q))
