"""Notice a loss that is not finite or jumps, so that the loop can go back to a state from before.

Supernet training is known for it: a path that is rarely drawn meets weights that have moved, and one bad step is kept
by the optimiser's moments for hundreds of steps (public AttentiveNAS runs report it as NaN).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

__all__ = ["JumpGuard"]

WINDOW = 16
"""Steps whose mean loss is compared: single losses of random paths differ by more than an order of magnitude."""

OVER_BEST, OVER_START = 5.0, 2.0
"""A jump is a mean that many times the best one so far and that many times the first one."""


class JumpGuard:
    """Watches one loss after another; its state goes into the checkpoint."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._first = self._best = math.nan

    def jumped(self, loss: float) -> bool:
        """Take the loss of one more step; True where it is not finite or the recent mean has jumped."""
        if not math.isfinite(loss):
            return True
        self._recent.append(loss)
        if len(self._recent) < WINDOW:
            return False
        mean = sum(self._recent) / WINDOW
        if math.isnan(self._first):
            self._first = self._best = mean
        self._best = min(self._best, mean)
        return mean > max(OVER_BEST * self._best, OVER_START * self._first)

    def state(self) -> dict[str, Any]:
        """What `restore` takes: plain numbers."""
        return {"recent": list(self._recent), "first": self._first, "best": self._best}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to an earlier state."""
        self._recent = deque(state["recent"], maxlen=WINDOW)
        self._first, self._best = state["first"], state["best"]
