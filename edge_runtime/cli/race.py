"""The same frames for two models while the CPU is taken away and given back: what the demo shows, without showing it.

A frame here is a tray of parts, each of which is one image for the model: as many as make a fixed full model work for
about a camera's frame time. (One run of a small model is shorter than the time slice of the kernel, and its lateness
then says nothing about the model.) Both contestants answer every frame, one right after the other and in alternating
order, so that both see the same load. What counts is the time from frame to last answer against one deadline; the ticks
in which nnf-edge decides are part of its own time. The load comes in three phases: idle, busy, idle.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from edge_runtime.cli.pressure import Pressure
from edge_runtime.objectives import percentile

if TYPE_CHECKING:
    from edge_runtime.inputs import Frame
    from edge_runtime.model import EdgeModel, Prediction
    from edge_runtime.swap import Swap

__all__ = ["PHASES", "Contestant", "Lap", "Phase", "Race", "Tray"]

Phase = Literal["idle", "busy", "idle again"]
PHASES: Final[tuple[tuple[Phase, float], ...]] = (("idle", 0.2), ("busy", 0.4), ("idle again", 0.4))
"""Phases and their share of the race."""

LAP_S: Final = 1.0
FRAME_MS: Final = 20.0
MAX_PARTS: Final = 64
SINGLES: Final = 51
TRIALS: Final = 24


@dataclass(slots=True)
class Contestant:
    """One model and what became of its frames."""

    name: str
    """For people."""

    model: EdgeModel
    """What answers."""

    adapts: bool
    """Whether it is given its tick after each frame."""

    latencies_ns: dict[Phase, list[int]] = field(default_factory=dict)
    """Time from frame to answer, nanoseconds, by phase."""

    parts: int = 0
    """Images answered."""

    right: int = 0
    """Answers that were the label, of labelled images."""

    def answer(self, tray: Sequence[tuple[Frame, str | None]], phase: Phase) -> int:
        """Answer all parts of one frame; returns and keeps the nanoseconds it took."""
        predictions: list[Prediction] = []
        start = time.perf_counter_ns()
        for image, _ in tray:
            predictions.append(self.model(image))
            if self.adapts:
                self.model.adapt()
        took = time.perf_counter_ns() - start
        self.latencies_ns.setdefault(phase, []).append(took)
        self.parts += len(tray)
        self.right += sum(made.label == label for made, (_, label) in zip(predictions, tray, strict=True))
        return took

    def frames(self, phase: Phase | None = None) -> int:
        """Frames answered, in one phase or in all."""
        return len(self._of(phase))

    def late(self, deadline_ms: float, phase: Phase | None = None) -> int:
        """Frames answered after the deadline."""
        return sum(took > deadline_ms * 1e6 for took in self._of(phase))

    def _of(self, phase: Phase | None) -> list[int]:
        if phase is not None:
            return self.latencies_ns.get(phase, [])
        return [took for part in self.latencies_ns.values() for took in part]

    def to_json(self, deadline_ms: float, labelled: bool) -> dict[str, Any]:
        """What became of its frames as JSON types, raw latencies included."""
        total = self.frames()
        return {
            "frames": total,
            "late": self.late(deadline_ms),
            "parts": self.parts,
            "right": self.right if labelled else None,
            "phases": [
                {
                    "phase": phase,
                    "frames": len(latencies),
                    "late": self.late(deadline_ms, phase),
                    "p50_ms": percentile(sorted(latencies), 50) / 1e6,
                    "p95_ms": percentile(sorted(latencies), 95) / 1e6,
                    "latencies_ns": latencies,
                }
                for phase, latencies in self.latencies_ns.items()
            ],
        }


@dataclass(frozen=True, slots=True)
class Lap:
    """About one second of the race."""

    end_s: float
    """Since the start."""

    phase: Phase
    """Of all its frames."""

    p90_ms: tuple[float, float]
    """Of the fixed model and of nnf-edge."""

    late: tuple[int, int]
    """Frames after the deadline, of the fixed model and of nnf-edge."""

    frames: int
    """Frames that each of them answered."""

    active: str
    """Gates of nnf-edge at the end of the lap."""

    swaps: tuple[Swap, ...]
    """Swaps of nnf-edge in this lap."""


@dataclass(frozen=True, slots=True)
class Tray:
    """The size of a frame, and what it costs."""

    parts: int
    """Images in a frame."""

    usual_ms: float
    """9 of 10 frames take the model no longer than this on the machine as it is now, milliseconds."""

    @classmethod
    def for_model(cls, model: EdgeModel, images: Sequence[Frame]) -> Tray:
        """As many parts as keep `model`, as it is set, at work for about a camera's frame time."""
        singles = [_time_ns(model, [images[at % len(images)]]) for at in range(SINGLES)]
        parts = min(MAX_PARTS, max(1, round(FRAME_MS * 1e6 / percentile(sorted(singles), 50))))
        whole = [_time_ns(model, [images[(at + k) % len(images)] for k in range(parts)]) for at in range(TRIALS)]
        return cls(parts, percentile(sorted(whole), 90) / 1e6)


def _time_ns(model: EdgeModel, images: Sequence[Frame]) -> int:
    start = time.perf_counter_ns()
    for image in images:
        model(image)
    return time.perf_counter_ns() - start


class Race:
    """Two contestants, one deadline, one neighbour that makes the machine busy in the middle."""

    def __init__(
        self,
        fixed: Contestant,
        edge: Contestant,
        *,
        deadline_ms: float,
        images: Sequence[tuple[Frame, str | None]],
        tray: int,
        pressure: Pressure,
        seconds: float,
    ) -> None:
        """Take `images` with their labels, shown `tray` at a time, over and over."""
        self.fixed, self.edge = fixed, edge
        self._deadline_ms = deadline_ms
        self._images, self._tray = images, tray
        self._pressure = pressure
        self._seconds = seconds
        self._shown = 0
        self._served = 0

    def _next_tray(self) -> list[tuple[Frame, str | None]]:
        first, self._shown = self._shown, self._shown + self._tray
        return [self._images[at % len(self._images)] for at in range(first, self._shown)]

    def laps(self) -> Iterator[Lap]:
        """Run the race; one lap at a time, each when it is over."""
        start = time.perf_counter()
        end = 0.0
        for phase, share in PHASES:
            end += share * self._seconds
            if phase == "busy":
                self._pressure.start()
            else:
                self._pressure.stop()
            while (now := time.perf_counter() - start) < end:
                yield self._lap(phase, start, end if end - now < 1.5 * LAP_S else now + LAP_S)
        self._pressure.stop()

    def _lap(self, phase: Phase, start: float, until_s: float) -> Lap:
        took: tuple[list[int], list[int]] = ([], [])
        known = self._generation()
        while not took[0] or time.perf_counter() - start < until_s:
            tray = self._next_tray()
            pair = ((0, self.fixed), (1, self.edge))
            for index, contestant in pair if self._served % 2 else pair[::-1]:
                took[index].append(contestant.answer(tray, phase))
            self._served += 1
        late = tuple(sum(one > self._deadline_ms * 1e6 for one in each) for each in took)
        p90 = tuple(percentile(sorted(each), 90) / 1e6 for each in took)
        return Lap(
            end_s=time.perf_counter() - start,
            phase=phase,
            p90_ms=(p90[0], p90[1]),
            late=(late[0], late[1]),
            frames=len(took[0]),
            active=str(self.edge.model.gates),
            swaps=tuple(swap for swap in self.edge.model.stats().swaps if swap.generation > known),
        )

    def _generation(self) -> int:
        swaps = self.edge.model.stats().swaps
        return swaps[-1].generation if swaps else 0
