"""The tick's part of adaptation: readings of the running subnet in, a move along the frontier out. Microseconds."""

from __future__ import annotations

import threading
from collections import deque

from edge_runtime.gates import Gates
from edge_runtime.objectives import Frontier, Score
from edge_runtime.policy import AdaptationPolicy, Decision, History, Reading

__all__ = ["Control"]

KEPT_READINGS = 64
"""Frames remembered between two ticks; a loop that ticks less often loses the older ones, never its place."""


class Control:
    """Feeds the policy with frames and remembers its history. `observe` may be called from any thread."""

    def __init__(self, policy: AdaptationPolicy, unusable: frozenset[Gates] = frozenset()) -> None:
        self._policy = policy
        self._history = History()
        self._lock = threading.Lock()  # a search learns in its own thread, while ticks decide
        self._readings: deque[tuple[float, float, Gates]] = deque(maxlen=KEPT_READINGS)
        self._known: dict[Gates, Score] = {}
        self.unusable = unusable
        """Subnets whose outputs were unusable in the loop: they are on no frontier."""
        self.frontier: Frontier | None = None
        """Where the policy may go; None: it stays."""
        self.load: float | None = None
        """How much slower than measured on the calm machine, a factor; None before enough frames."""

    def learn(self, frontier: Frontier, scores: tuple[Score, ...] = ()) -> None:
        """Take a new frontier, and scores of subnets that are not on it but may be active; start afresh on them.

        What was seen until now was judged by the old scores, and by those a subnet may have looked slow that is not.
        """
        with self._lock:
            self._known = {score.gates: score for score in (*scores, *frontier.scores)}
            self.frontier = frontier.without(self.unusable)
            self._history, self.load = History(), None
            self._readings.clear()

    def forget(self, gates: Gates) -> None:
        """Never go to a subnet again: its outputs were unusable."""
        with self._lock:
            self.unusable |= {gates}
            self.frontier = self.frontier and self.frontier.without(self.unusable)

    def score_of(self, gates: Gates) -> Score | None:
        """What is known of a subnet."""
        return self._known.get(gates)

    def observe(self, time_s: float, latency_ms: float, gates: Gates) -> None:
        """Note one frame: when it was done, how long the model ran, and which subnet."""
        self._readings.append((time_s, latency_ms, gates))

    def decide(self, active: Gates, limit_ms: float) -> Decision | None:
        """The policy's decision after all frames noted since the last call; None where it has nothing to go by."""
        with self._lock:
            return self._decide(active, limit_ms)

    def _decide(self, active: Gates, limit_ms: float) -> Decision | None:
        frontier, score = self.frontier, self._known.get(active)
        decision = None
        while self._readings:
            time_s, latency_ms, gates = self._readings.popleft()
            if frontier is None or score is None or gates != active:
                continue
            reading = Reading(time_s, latency_ms)
            decision = self._policy.decide(reading, score, frontier, limit_ms, self._history)
            self._history, self.load = decision.history, decision.load
            if decision.switch:
                self._readings.clear()
        return decision
