"""How good and how fast subnets are, and those of them that are worth having."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from edge_runtime.checks import fields, finite, positive, whole
from edge_runtime.errors import UsageError
from edge_runtime.gates import Gates, GateSpace

__all__ = ["Frontier", "Score"]


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

    def without(self, subnets: Collection[Gates]) -> Frontier | None:
        """What is left where some subnets are not to be had; None where nothing is."""
        left = tuple(score for score in self.scores if score.gates not in subnets)
        return Frontier(left) if left else None

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
