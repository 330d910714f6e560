"""When the application's next frame is due, by those before it, so that a search can work between two frames."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FramePace"]

LATE = 0.5
"""Share of a period by which a frame may be late, before it is waited for no longer."""

LEAST_NAP_SECONDS = 5e-4


@dataclass(frozen=True, slots=True)
class _Frame:
    """The last frame, in seconds of one clock; one object, as another thread reads it."""

    began: float
    ended: float
    period: float | None


class FramePace:
    """Told of each frame by the loop, asked by a search in another thread; neither ever waits for the other."""

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

        What ends before the next frame is due may begin, and anything just after a frame. Where none is due, as none
        came yet or it is late, nothing is waited for.

        Args:
            now_s: Seconds of the same clock.
            needed_s: How long it will take.
            since_s: When it was first asked for.
        """
        last = self._last
        if last is None or last.period is None or last.ended >= since_s:
            return 0.0
        due_s = last.began + last.period
        answered_s = due_s + (last.ended - last.began)
        if now_s + needed_s <= due_s or now_s > answered_s + LATE * last.period:
            return 0.0
        return max(answered_s - now_s, LEAST_NAP_SECONDS)
