"""When the application's next frame is due, by those before it, so that a search can work between two frames."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FramePace"]

PATIENCE = 2.0
"""What is waited at most, in the time that is needed. Of slices that take as long as needed a search keeps a third of a
CPU, or the less that it may take; of shorter ones less where no two fit between two frames."""

LEAST_NAP_SECONDS = 1e-3


@dataclass(frozen=True, slots=True)
class _Frame:
    """The last frame, in seconds of one clock; one object, as another thread reads it."""

    began: float
    ended: float
    period: float | None


class FramePace:
    """Told of each frame by the loop, asked by a search in another thread; neither ever waits for the other.

    It goes by the time between the last two frames: where several come at once, or in turns from several cameras, there
    is hardly ever room, and a search works at any time.
    """

    def __init__(self) -> None:
        self._last: _Frame | None = None

    def frame(self, began_s: float, ended_s: float) -> None:
        """A frame was answered.

        Args:
            began_s: When the application gave it, seconds of `time.perf_counter`.
            ended_s: When it had its answer.
        """
        before = self._last
        self._last = _Frame(began_s, ended_s, None if before is None else began_s - before.began)

    def nap_s(self, now_s: float, needed_s: float, since_s: float) -> float:
        """Seconds to sleep before something is begun, after which to ask again; 0 where it may begin now.

        What would fit between two frames waits where the next one is due too soon, until that one is answered. What
        fits nowhere does not wait, nor does anything where no frame is due: none came yet, or one is late by a period.

        Args:
            now_s: Seconds of the same clock.
            needed_s: How long it will take.
            since_s: When it was first asked for.
        """
        last, patience_s = self._last, since_s + PATIENCE * needed_s - now_s
        if last is None or last.period is None or patience_s <= 0:
            return 0.0
        took = last.ended - last.began
        due_s = last.began + last.period
        fits, never_fits = now_s + needed_s <= due_s, took + needed_s > last.period
        if fits or never_fits or now_s > due_s + last.period:
            return 0.0
        return min(max(due_s + took - now_s, LEAST_NAP_SECONDS), patience_s)
