"""What happens between frames: the tick, and the searches that the loop starts by itself."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from edge_runtime import sense
from edge_runtime.adaptation import AdaptPlan, AdaptStatus
from edge_runtime.adaptation.control import Control
from edge_runtime.errors import BudgetError, InputError
from edge_runtime.inputs import Frame, SampleBuffer
from edge_runtime.measure import Clock
from edge_runtime.model.jobs import Labels
from edge_runtime.model.search import Searches, Take
from edge_runtime.profiles import Limits
from edge_runtime.swap import ActiveGates

__all__ = ["Loop"]

SEARCH_SECONDS = 20.0
"""Time limit of a search that nobody gave one; with the measurement of the finalists it stays below 30 s."""

SEARCH_FROM_FRAMES = 64
"""Frames in the buffer from which a search in the background makes sense; fewer where the buffer is smaller."""

SEARCH_EVERY_S = 600.0
"""Pause between two searches that the loop starts by itself."""


class Loop:
    """Ticks, and searches on request. Thread-safe; a tick never waits for a search in another thread."""

    def __init__(
        self,
        *,
        active: ActiveGates,
        control: Control,
        searches: Searches,
        buffer: SampleBuffer,
        limits: Limits,
        seed: int,
        clock_ns: Clock = time.perf_counter_ns,
    ) -> None:
        self._active, self._control, self._searches, self._buffer = active, control, searches, buffer
        self._limits, self._seed, self._clock_ns = limits, seed, clock_ns
        self._lock = threading.Lock()
        self._told_generation = active.lease().generation
        self._searched_s = -math.inf

    @property
    def search_seconds(self) -> float:
        """Time limit of a search that is waited for, seconds; the finalists are measured beyond it if need be."""
        return min(SEARCH_SECONDS, self._limits.adapt_seconds)

    def tick(self) -> AdaptStatus:
        """Move along the frontier if the policy says so; start a search if one is due. Microseconds."""
        if not self._lock.acquire(blocking=False):
            return self._searches.progress()
        try:
            limit_ms = self._searches.limit_ms
            active = self._active.gates
            decision = None if limit_ms is None else self._control.decide(active, limit_ms)
            if decision is not None and decision.switch:
                strain = sense.strain()  # some file reads; here only, because swaps are rare
                reason = f"{decision.reason} ({strain})" if strain else decision.reason
                self._active.swap(decision.gates, reason, expected=active)
            elif self._search_due():
                self._start(lambda: (self._buffer.images(), None), self._limits.adapt_seconds)
            return self._told(self._searches.progress())
        finally:
            self._lock.release()

    def search(
        self,
        images: Frame,
        labels: Labels | None,
        *,
        wait: bool,
        seconds: float | None,
        tell: Callable[[AdaptStatus], None],
    ) -> AdaptStatus:
        """Search on these images, here and now or in the background."""
        with self._lock:
            limit_s = self.search_seconds if seconds is None else seconds
            if not wait:
                self._start(lambda: (images, labels), limit_s)
                return self._told(self._searches.progress())
            self._searched_s, plan = self._clock_ns() / 1e9, self._plan(limit_s)
            try:
                status = self._searches.run(images, labels, plan, tell)
            except BudgetError:
                if plan.budget == self._searches.budget:
                    raise
                return self._told(self._searches.progress())  # another thread gave a new budget meanwhile
            if plan.budget != self._searches.budget:
                return self._told(status)
            self._told_generation = self._active.lease().generation
            return status

    def wait(self, seconds: float | None, tell: Callable[[AdaptStatus], None]) -> AdaptStatus:
        """Wait for the search that runs; where none does, search the buffer."""
        if self._searches.running is not None:
            self._searches.wait(tell)
            with self._lock:
                return self._told(self._searches.progress())
        if not len(self._buffer):
            raise InputError("there is nothing to adapt to", hint="give samples, or load with buffer_frames=256")
        return self.search(self._buffer.images(), None, wait=True, seconds=seconds, tell=tell)

    def _start(self, take: Take, seconds: float) -> None:
        self._searched_s = self._clock_ns() / 1e9
        self._searches.start(take, self._plan(seconds))

    def _plan(self, seconds: float) -> AdaptPlan:
        return AdaptPlan(self._searches.budget, seconds=seconds, seed=self._seed)

    def _search_due(self) -> bool:
        """Whether to search by itself: a limit on the time, enough frames, nothing running, none made for a while."""
        capacity = self._buffer.capacity
        if not capacity or len(self._buffer) < min(SEARCH_FROM_FRAMES, capacity):
            return False
        if not self._searches.budget.limits_time:
            return False
        rested = self._clock_ns() / 1e9 - self._searched_s > SEARCH_EVERY_S
        return rested and self._searches.running is None

    def _told(self, status: AdaptStatus) -> AdaptStatus:
        """The status as of now; `changed` is true once after each swap, whoever made it, with its reason."""
        budget, limit_ms = self._searches.budget, self._searches.limit_ms
        if (status.budget, status.limit_ms) != (budget, limit_ms):
            status = replace(status, budget=budget, limit_ms=limit_ms)
        lease = self._active.lease()
        if lease.generation != self._told_generation:
            self._told_generation = lease.generation
            return replace(status, active=lease.gates, changed=True, reason=self._active.history[-1].reason)
        if status.changed or status.active != lease.gates:
            return replace(status, active=lease.gates, changed=False)
        return status
