"""What an adaptation says about itself: values that explain, for people and as JSON. They decide nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from edge_runtime.gates import Gates
from edge_runtime.objectives import Budget, Frontier, Score

__all__ = ["AdaptStatus", "Candidate", "Fate", "Phase"]

Phase = Literal["idle", "calibrate", "search", "measure", "done", "failed"]

Fate = Literal[
    "chosen",
    "kept",
    "lost",
    "worse",
    "indistinguishable",
    "not trusted",
    "over budget",
    "uncertain",
    "reference",
    "unusable",
    "unmeasured",
    "fell early",
]
"""What became of a candidate.

`lost` is likely worth less, `worse` significantly so; `indistinguishable` stood aside for the current or a cheaper one;
of what is `not trusted` the bundle's prior expects far more damage than the latency costs; `uncertain` was measured
within the budget, but not so often or so evenly that its p95 surely is; `reference` is the full subnet where it is over
the budget; outputs of what is `unusable` were not finite, or of a wrong shape, when it answered frames; `unmeasured`
was evaluated for the frontier; `fell early` was cut on the first images.
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One subnet that was looked at, and why it is not the one (or is)."""

    score: Score
    """Quality on the images it was run on, and its p95: measured where `score.measured`, else predicted."""

    fate: Fate
    """What became of it, in one word."""

    reason: str
    """The same with figures: ``measured p95 10.40 ms > 9.60 ms``."""

    def to_json(self) -> dict[str, Any]:
        """The candidate as JSON types."""
        return {**self.score.to_json(), "text": str(self.score.gates), "fate": self.fate, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class AdaptStatus:
    """What is active, what runs in the background, what changed and why."""

    active: Gates
    """The subnet that answers the next frame."""

    phase: Phase
    """What the search does now; `idle` when there was none, `done` or `failed` after the last one."""

    progress: float
    """Share of the search that is done, 0 to 1, by its time limit; 1 when none runs."""

    changed: bool
    """Whether this call, or the search that it waited for, changed the active subnet."""

    reason: str
    """Why it changed or stayed, for people."""

    frontier: Frontier | None = None
    """The subnets worth having on this machine and data; None before the first search. Measured scores are marked."""

    candidates: tuple[Candidate, ...] = ()
    """Those of the last finished search: the measured ones first, then by quality."""

    budget: Budget = field(default_factory=Budget)
    """The budget in force."""

    limit_ms: float | None = None
    """The latency limit that the budget comes to on this machine, milliseconds; None without one, or not known yet."""

    full_latency_ms: float | None = None
    """p95 of the full subnet as the last search expected it, milliseconds: its measured median times the tail of all
    that was measured."""

    samples: int = 0
    """Images that the last search used."""

    labelled: bool = False
    """Whether quality means accuracy on labels; otherwise soft agreement with the full subnet."""

    seconds: float = 0.0
    """How long the search took, or has taken so far; with the time that it had before a restart."""

    taken_up: int = 0
    """Values, one per subnet and image, that were taken up from a search that a restart had interrupted."""

    ended_early: bool = False
    """Whether the search stopped at its time limit before it had looked at everything it wanted to."""

    variety: float = 1.0
    """How much the images of the last search could tell, 0 to 1: 0 where the labels, or else the full subnet, name one
    class for all of them. The less, the closer the choice is to the bundle's own."""

    def __str__(self) -> str:
        """One line for a log."""
        busy = f" {self.progress:.0%}" if self.phase not in ("idle", "done", "failed") else ""
        return f"{self.active} [{self.phase}{busy}] {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """The status as JSON types."""
        return {
            "active": str(self.active),
            "phase": self.phase,
            "progress": round(self.progress, 4),
            "changed": self.changed,
            "reason": self.reason,
            "frontier": None if self.frontier is None else self.frontier.to_json(),
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "budget": self.budget.to_json(),
            "limit_ms": self.limit_ms,
            "full_latency_ms": self.full_latency_ms,
            "samples": self.samples,
            "labelled": self.labelled,
            "seconds": round(self.seconds, 3),
            "taken_up": self.taken_up,
            "ended_early": self.ended_early,
            "variety": round(self.variety, 3),
        }
