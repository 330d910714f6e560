"""What happens between frames: the tick, the budget in force, and the searches that the loop starts by itself."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from edge_runtime import sense
from edge_runtime.adaptation import AdaptPlan, AdaptStatus
from edge_runtime.adaptation.control import Control
from edge_runtime.errors import InputError
from edge_runtime.inputs import Frame, SampleBuffer
from edge_runtime.measure import Clock
from edge_runtime.model.jobs import Labels
from edge_runtime.model.search import Searches
from edge_runtime.objectives import Budget
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
        budget: Budget,
        limits: Limits,
        seed: int,
        clock_ns: Clock = time.perf_counter_ns,
    ) -> None:
        self.budget = budget
        """The budget in force."""
        self._active, self._control, self._searches, self._buffer = active, control, searches, buffer
        self._limits, self._seed, self._clock_ns = limits, seed, clock_ns
        self._lock = threading.Lock()
        self._told_generation = active.lease().generation
        self._searched_s = -math.inf

    @property
    def limit_ms(self) -> float | None:
        """The latency limit in force, milliseconds; None without one, or where it is not known yet."""
        memory = self._searches.memory
        return self.budget.latency_ms if memory is None else memory.limit_ms(self.budget)

    @property
    def search_seconds(self) -> float:
        """Time limit of a search that is waited for, seconds; the finalists are measured beyond it if need be."""
        return min(SEARCH_SECONDS, self._limits.adapt_seconds)

    def set_budget(self, budget: Budget) -> None:
        """Take a new budget, and the place on the frontier that it asks for: the full subnet without a limit.

        A search in the background begins again for it.
        """
        if budget == self.budget:
            return
        self.budget = budget
        self._searches.again(budget)
        self._take_place()

    def _take_place(self) -> None:
        """Go to the place on the frontier that the budget asks for."""
        frontier, limit_ms, reason = self._control.frontier, self.limit_ms, f"the budget is now {self.budget}"
        if not self.budget.limits_time:
            self._active.swap(self._active.gates.space.default, reason)
        elif frontier is not None and limit_ms is not None:
            self._active.swap((frontier.best(limit_ms) or frontier.fastest).gates, reason)

    def tick(self) -> AdaptStatus:
        """Move along the frontier if the policy says so; start a search if one is due. Microseconds."""
        if not self._lock.acquire(blocking=False):
            return self._searches.progress()
        try:
            limit_ms = self.limit_ms
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
            self._searched_s, budget = self._clock_ns() / 1e9, self.budget
            status = self._searches.run(images, labels, budget, self._plan(limit_s), tell)
            if budget != self.budget:  # another thread gave a new one meanwhile
                self._take_place()
                return self._told(status)
            self._told_generation = self._active.lease().generation
            return status

    def wait(self, seconds: float | None, tell: Callable[[AdaptStatus], None]) -> AdaptStatus:
        """Wait for the search that runs; where none does, search the buffer."""
        if self._searches.running is not None:
            status = self._searches.wait(tell)
            with self._lock:
                return self._told(status)
        if not len(self._buffer):
            raise InputError("there is nothing to adapt to", hint="give samples, or load with buffer_frames=256")
        return self.search(self._buffer.images(), None, wait=True, seconds=seconds, tell=tell)

    def _start(self, take: Callable[[], tuple[Frame, Labels | None]], seconds: float) -> None:
        self._searched_s = self._clock_ns() / 1e9
        self._searches.start(take, self.budget, self._plan(seconds))

    def _plan(self, seconds: float) -> AdaptPlan:
        return AdaptPlan(self.budget, seconds=seconds, seed=self._seed)

    def _search_due(self) -> bool:
        """Whether to search by itself: a limit on the time, enough frames, nothing running, none made for a while."""
        capacity = self._buffer.capacity
        if not capacity or len(self._buffer) < min(SEARCH_FROM_FRAMES, capacity):
            return False
        if not self.budget.limits_time:
            return False
        rested = self._clock_ns() / 1e9 - self._searched_s > SEARCH_EVERY_S
        return rested and self._searches.running is None

    def _told(self, status: AdaptStatus) -> AdaptStatus:
        """The status as of now; `changed` is true once after each swap, whoever made it, with its reason."""
        limit_ms = self.limit_ms
        if (status.budget, status.limit_ms) != (self.budget, limit_ms):
            status = replace(status, budget=self.budget, limit_ms=limit_ms)
        lease = self._active.lease()
        if lease.generation != self._told_generation:
            self._told_generation = lease.generation
            return replace(status, active=lease.gates, changed=True, reason=self._active.history[-1].reason)
        if status.changed or status.active != lease.gates:
            return replace(status, active=lease.gates, changed=False)
        return status
