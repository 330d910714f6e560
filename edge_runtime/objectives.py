"""What "better" means: budgets, measurements, scores and the frontier between them. Measures nothing, reads no clock.

Latencies are milliseconds as floats where they are compared and whole nanoseconds where they are raw samples; memory is
MiB in a budget, as people write it, and bytes in a record. This room is pure Python, so that it is cheap to import.

Percentiles follow the early-stopping rule of MLPerf LoadGen (`loadgen/early_stopping.cc`): a percentile is only stated
when so many runs were made that, with 99 % confidence, one run above it was to be expected and could be discarded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from edge_runtime.checks import fields, finite, positive, whole, word
from edge_runtime.errors import UsageError
from edge_runtime.gates import Gates, GateSpace

__all__ = [
    "MIB",
    "RUNS_NEEDED",
    "Budget",
    "Frontier",
    "Measurement",
    "Score",
    "percentile",
    "pooled_tail",
    "upper_rank",
]

MIB = 1024 * 1024

RUNS_NEEDED: Mapping[int, int] = {50: 11, 90: 64, 95: 130, 99: 662}
"""Runs that a percentile needs before it is stated: the smallest n whose second largest sample is an upper bound."""

_RISK = 0.01  # of stating an upper bound that lies below the true percentile


def percentile(sorted_values: Sequence[float], q: float) -> float:
    """The nearest-rank percentile: the smallest value with at least `q` percent of all values at or below it.

    Args:
        sorted_values: Ascending and not empty, in any unit.
        q: In (0, 100].

    Raises:
        UsageError: No values, or `q` outside its range.
    """
    if not sorted_values:
        raise UsageError("a percentile of no values does not exist", hint="measure at least one run")
    if not 0 < q <= 100:
        raise UsageError(f"percentile {q} is not in (0, 100]")
    return sorted_values[math.ceil(q * len(sorted_values) / 100) - 1]


def pooled_tail(measurements: Iterable[Measurement], q: int = 95) -> float:
    """A percentile over the median, 1 or more, of all runs together, each over the median of its own subnet.

    What disturbs a machine disturbs every subnet on it, so this is steadier than the percentile of any one of them.
    """
    shares: list[float] = []
    for measurement in measurements:
        p50_ns = measurement.p50_ms * 1e6
        shares.extend(ns / p50_ns for ns in measurement.latencies_ns)
    return max(1.0, percentile(sorted(shares), q))


def upper_rank(count: int, q: float) -> int | None:
    """Rank (1 to `count`) of the sample that is at or above the true percentile `q` with 99 % confidence.

    Sample k lies below the true percentile when at least k of `count` runs do: P(Binomial(count, q / 100) >= k). None
    when even the largest sample is too likely to lie below it.
    """
    share = q / 100
    if not 0 < share < 1:
        raise UsageError(f"percentile {q} is not in (0, 100)")
    log_term, tail, rank = count * math.log(share), 0.0, count
    while rank > 0:
        tail += math.exp(log_term)
        if tail > _RISK:
            break
        # Binomial(count) at rank - 1 from the one at rank, in logarithms: the terms underflow from about 1,000 runs on.
        log_term += math.log(rank / (count - rank + 1)) + math.log((1 - share) / share)
        rank -= 1
    return rank + 1 if rank < count else None


@dataclass(frozen=True, slots=True)
class Budget:
    """What the application can afford; fields left out limit nothing. Raises `UsageError` when built invalid."""

    latency_ms: float | None = None
    """Upper limit of the p95 latency of one frame, milliseconds, above 0. Not together with `fraction`."""

    memory_mib: float | None = None
    """Upper limit of the peak memory of the process, MiB, above 0."""

    fraction: float | None = None
    """Upper limit of the p95 latency as a share of the full subnet's p95 on the same machine, above 0. Example: 0.6."""

    def __post_init__(self) -> None:
        for name in ("latency_ms", "memory_mib", "fraction"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, positive(f"budget {name}", value))
        if self.latency_ms is not None and self.fraction is not None:
            raise UsageError("a budget has either latency_ms or fraction, not both", hint="leave one of them out")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a latency budget as people type it: ``33`` or ``33ms``, or ``60%`` of the full subnet's p95."""
        match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(ms|%)?\s*", text)
        if match is None:
            raise UsageError(f"budget {text[:40]!r} is not understood", hint="write milliseconds like 33, or 60%")
        number = float(match[1])
        return cls(fraction=number / 100) if match[2] == "%" else cls(latency_ms=number)

    def limit_ms(self, full_latency_ms: float) -> float:
        """The latency limit in milliseconds where the full subnet's p95 is `full_latency_ms`; inf where none is set."""
        if self.fraction is not None:
            return self.fraction * full_latency_ms
        return math.inf if self.latency_ms is None else self.latency_ms

    @property
    def memory_bytes(self) -> float:
        """The memory limit in bytes; inf where none is set."""
        return math.inf if self.memory_mib is None else self.memory_mib * MIB

    def __str__(self) -> str:
        parts = []
        if self.latency_ms is not None:
            parts.append(f"{self.latency_ms:g} ms")
        if self.fraction is not None:
            parts.append(f"{self.fraction:.0%} of the full subnet")
        if self.memory_mib is not None:
            parts.append(f"{self.memory_mib:g} MiB")
        return ", ".join(parts) or "no limit"

    def to_json(self) -> dict[str, float]:
        """The limits that are set, by field name."""
        limits = {"latency_ms": self.latency_ms, "memory_mib": self.memory_mib, "fraction": self.fraction}
        return {name: limit for name, limit in limits.items() if limit is not None}

    @classmethod
    def from_json(cls, body: object) -> Budget:
        """Inverse of `to_json`. Raises `UsageError`, never another exception, whatever the body."""
        values = fields("budget", body, required=(), optional=("latency_ms", "memory_mib", "fraction"))
        return cls(values.get("latency_ms"), values.get("memory_mib"), values.get("fraction"))


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


@dataclass(frozen=True, slots=True)
class Score:
    """How good and how fast one subnet is. Raises `UsageError` when built invalid."""

    gates: Gates
    """The subnet."""

    quality: float
    """Accuracy, or soft agreement with the full subnet, in [0, 1]; higher is better."""

    low: float
    """Lower end of the 95 % interval of `quality`, in [0, quality]."""

    high: float
    """Upper end of the 95 % interval of `quality`, in [quality, 1]."""

    samples: int
    """Inputs that `quality` was computed on, at least 0 (0: it is a prior, not an observation)."""

    latency_ms: float
    """The p95 that is compared with budgets, milliseconds, above 0."""

    peak_bytes: int | None
    """Peak resident memory of the process with this subnet, bytes; None where the machine does not tell."""

    measured: bool
    """Whether `latency_ms` was measured on this machine; otherwise it is predicted."""

    def __post_init__(self) -> None:
        for name in ("quality", "low", "high"):
            value = finite(name, getattr(self, name))
            if not 0 <= value <= 1:
                raise UsageError(f"{name} {value} is not in [0, 1]")
            object.__setattr__(self, name, value)
        if not self.low <= self.quality <= self.high:
            raise UsageError(f"quality {self.quality} is outside its interval {self.low} to {self.high}")
        object.__setattr__(self, "samples", whole("samples", self.samples))
        object.__setattr__(self, "latency_ms", positive("latency_ms", self.latency_ms))
        if self.peak_bytes is not None:
            object.__setattr__(self, "peak_bytes", whole("peak_bytes", self.peak_bytes))
        if not isinstance(self.measured, bool):
            raise UsageError(f"measured is {type(self.measured).__name__}, not true or false")

    def violation(self, budget: Budget, full_latency_ms: float) -> float:
        """By which share the budget is exceeded, latency and memory added; 0 when it is met.

        Args:
            budget: The limits; an unknown memory violates none.
            full_latency_ms: p95 of the full subnet on the same machine, milliseconds.
        """
        over = max(0.0, self.latency_ms / budget.limit_ms(full_latency_ms) - 1)
        return over + max(0.0, (self.peak_bytes or 0) / budget.memory_bytes - 1)

    def dominates(self, other: Score) -> bool:
        """Whether this is at least as good and as fast as `other`, and better in one of the two.

        Memory is a limit and not an objective: all subnets of one session share their weights, and an unknown memory
        would make the order intransitive.
        """
        at_least = self.quality >= other.quality and self.latency_ms <= other.latency_ms
        return at_least and (self.quality > other.quality or self.latency_ms < other.latency_ms)

    def to_json(self) -> dict[str, Any]:
        """The score as JSON types."""
        return {
            "gates": self.gates.to_json(),
            "quality": self.quality,
            "low": self.low,
            "high": self.high,
            "samples": self.samples,
            "latency_ms": self.latency_ms,
            "peak_bytes": self.peak_bytes,
            "measured": self.measured,
        }

    @classmethod
    def from_json(cls, space: GateSpace, body: object) -> Score:
        """Inverse of `to_json`. Raises `UsageError`, never another exception, whatever the body."""
        values = fields("score", body, required=cls.__slots__)
        return cls(space.from_json(values.pop("gates")), **values)


@dataclass(frozen=True, slots=True)
class Frontier:
    """The subnets worth having, each slower one better; see `Frontier.of`. Raises `UsageError` when built invalid."""

    scores: tuple[Score, ...]
    """At least one; latency and quality both strictly ascending; all of one gate space."""

    def __post_init__(self) -> None:
        if not self.scores:
            raise UsageError("a frontier has no subnets", hint="score at least one subnet")
        for fast, slow in zip(self.scores, self.scores[1:], strict=False):
            if not (fast.latency_ms < slow.latency_ms and fast.quality < slow.quality):
                raise UsageError(f"frontier is out of order at {fast.gates} and {slow.gates}", hint="use Frontier.of")
            if fast.gates.space != slow.gates.space:
                raise UsageError("a frontier mixes subnets of different gate spaces")

    @classmethod
    def of(cls, scores: Iterable[Score]) -> Frontier:
        """The non-dominated scores; the same for every order of `scores`.

        Of several scores of one subnet the best founded one counts: measured before predicted, then by samples. Of
        several subnets with equal quality and latency the one with the smallest gate vector stays.
        """
        founded: dict[Gates, Score] = {}
        for score in sorted(scores, key=lambda s: (s.measured, s.samples, _canonical(s))):
            founded[score.gates] = score
        kept: list[Score] = []
        for score in sorted(founded.values(), key=_canonical):
            if not kept or score.quality > kept[-1].quality:
                kept.append(score)
        return cls(tuple(kept))

    @property
    def fastest(self) -> Score:
        """The score with the lowest latency."""
        return self.scores[0]

    @property
    def highest(self) -> Score:
        """The score with the highest quality."""
        return self.scores[-1]

    def best(self, latency_ms: float) -> Score | None:
        """The highest quality within a latency limit in milliseconds; None when even the fastest is slower."""
        within = [score for score in self.scores if score.latency_ms <= latency_ms]
        return within[-1] if within else None

    def at_least(self, quality: float) -> Score:
        """The fastest score with this quality or more; the highest where none has it."""
        return next((score for score in self.scores if score.quality >= quality), self.highest)

    def to_json(self) -> list[dict[str, Any]]:
        """The scores as JSON types, fastest first."""
        return [score.to_json() for score in self.scores]

    @classmethod
    def from_json(cls, space: GateSpace, body: object) -> Frontier:
        """Inverse of `to_json`. Raises `UsageError`, never another exception, whatever the body."""
        if not isinstance(body, list):
            raise UsageError("a frontier in JSON is a list of scores")
        return cls(tuple(Score.from_json(space, item) for item in body))


def _canonical(score: Score) -> tuple[Any, ...]:
    """A total order of scores: fastest first, of equally fast ones the best, then by every other field."""
    memory = -1 if score.peak_bytes is None else score.peak_bytes
    return (score.latency_ms, -score.quality, score.gates.vector(), score.low, score.high, memory)
