"""The active subnet, exchanged between frames: one immutable reference, read once by each frame.

A frame takes a lease before it runs and feeds the gates of that lease with its own run, so a swap can neither tear a
frame nor wait for one: frames that began before it finish under the old gates, frames that begin after it run the new.
Readers take no lock. This file decides nothing and runs nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from edge_runtime.errors import GateError
from edge_runtime.gates import Gates

__all__ = ["ActiveGates", "Lease", "Swap"]

HISTORY = 256
"""Swaps remembered; older ones are only counted."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What one frame runs under."""

    gates: Gates
    """The active subnet when the frame began."""

    generation: int
    """0 for the subnet that was loaded, plus 1 for each swap since."""


@dataclass(frozen=True, slots=True)
class Swap:
    """One exchange of the active subnet, as it is reported to people."""

    before: str
    """Text form of the gates until then."""

    after: str
    """Text form of the gates from then on."""

    reason: str
    """Why, in words and figures: ``latency 14.1 ms > 9.0 ms budget: load 1.8x``."""

    generation: int
    """1 for the first swap of this process."""

    at: str
    """Wall-clock time, ISO 8601 with zone; never used for decisions."""

    def to_json(self) -> dict[str, Any]:
        """The swap as JSON types."""
        return {
            "before": self.before,
            "after": self.after,
            "reason": self.reason,
            "generation": self.generation,
            "at": self.at,
        }


def _wall_clock() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class ActiveGates:
    """Holder of the active subnet. `lease` may be called from any thread; writers are serialised among themselves."""

    def __init__(
        self,
        gates: Gates,
        *,
        wall_clock: Callable[[], str] = _wall_clock,
        follow: Callable[[Gates], object] = lambda gates: None,
    ) -> None:
        """Begin with `gates`; `follow` is told what becomes active, in order; it is quick and raises nothing."""
        self._lease = Lease(gates, 0)
        self._wall_clock, self._follow = wall_clock, follow
        self._history: deque[Swap] = deque(maxlen=HISTORY)
        self._writing = threading.Lock()

    def lease(self) -> Lease:
        """The subnet to run the next frame under: one reference read, no lock."""
        return self._lease

    @property
    def gates(self) -> Gates:
        """The active subnet."""
        return self._lease.gates

    @property
    def history(self) -> tuple[Swap, ...]:
        """The last swaps, oldest first."""
        with self._writing:
            return tuple(self._history)

    def swap(self, gates: Gates, reason: str, *, expected: Gates | None = None) -> Swap | None:
        """Make `gates` the active subnet for every frame that begins from now on.

        Args:
            gates: A vector of the same space.
            reason: Why, for people; kept in the history.
            expected: Swap only if this is still the active subnet (a decision made on an older one is dropped).

        Returns:
            The record of the swap, or None where nothing changed.

        Raises:
            GateError: `gates` belongs to another space.
        """
        if gates.space is not self._lease.gates.space and gates.space != self._lease.gates.space:
            raise GateError("these gates belong to another model", hint="make them with model.space")
        with self._writing:
            before = self._lease
            if before.gates == gates or (expected is not None and before.gates != expected):
                return None
            self._lease = Lease(gates, before.generation + 1)
            record = Swap(str(before.gates), str(gates), reason, before.generation + 1, self._wall_clock())
            self._history.append(record)
            self._follow(gates)
            return record
