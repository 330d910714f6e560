"""What a model hands out: the answer to a frame, and one record of everything that happened. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_runtime.backends.base import Array
from edge_runtime.gates import Gates
from edge_runtime.swap import Swap

__all__ = ["Prediction", "Stats"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one frame."""

    outputs: dict[str, Array]
    """Every output of the model for this frame, by name, without the batch dimension."""

    label: str | None
    """Name of the most probable class."""

    confidence: float | None
    """Its probability, 0 to 1."""

    gates: Gates
    """The subnet that answered."""

    latency_ms: float
    """Time of the model's run, milliseconds; preprocessing is not in it."""

    fallback: bool
    """Whether the active subnet's outputs were unusable and another subnet answered."""


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of one `EdgeModel`."""

    frames: int
    """Answered since the model was loaded; a batch given to `infer` counts once."""

    p50_ms: float | None
    """Median time of the model's run over the last 1,024 frames, milliseconds; None before the first."""

    p95_ms: float | None
    """95th percentile of the same."""

    p99_ms: float | None
    """99th percentile of the same."""

    overhead_p50_ms: float | None
    """Median time that a frame took besides the model's run (preprocessing, checks), milliseconds."""

    deadline_misses: int
    """Frames whose run took longer than the latency limit that was in force."""

    limit_ms: float | None
    """The latency limit in force, milliseconds; None without one, or where it is not known yet."""

    budget: dict[str, float]
    """The budget in force, by field."""

    active: str
    """Text form of the active subnet."""

    load: float | None
    """How much slower the machine is than when it was measured, a factor; None where that is not known."""

    drift: float | None
    """Latency of about the last 32 frames of batch 1 over what the latency table predicts, a factor: how the machine's
    speed has changed since the table was made. None before that many, or before there is a table."""

    swaps_total: int
    """Swaps since the model was loaded."""

    swaps: tuple[Swap, ...]
    """The last of them with their reasons, oldest first."""

    bad_outputs: int
    """Outputs that were not finite or not of their shape, and failed runs; each was answered by another subnet."""

    search: str
    """What the background search does: `idle`, a phase, `done` or `failed`."""

    buffered_frames: int
    """Frames held for adaptation, in memory only."""

    rss_bytes: int | None
    """Resident memory of the process, bytes; None where the machine does not tell."""

    peak_bytes: int | None
    """Its largest value so far."""

    backend: str
    """Name of the session. Example: ``onnxruntime-crossing``."""

    form: str
    """Why it has this form: prepared on this machine, or why not."""

    threads: int
    """Threads inside an operator."""

    profile: str
    """Name of the device profile."""

    bundle: str
    """Digest of the bundle."""

    state: str
    """Where state is kept, or why it is not."""

    def to_json(self) -> dict[str, Any]:
        """The snapshot as JSON types."""
        body = {name: getattr(self, name) for name in self.__slots__}
        return body | {"swaps": [swap.to_json() for swap in self.swaps]}
