"""What a model has learned of its machine and its images, and keeps: the latency table, its drift, the last outcome."""

from __future__ import annotations

import threading

from edge_runtime.adaptation import AdaptResult
from edge_runtime.adaptation.memory import Memory
from edge_runtime.backends.base import Session, SessionOptions
from edge_runtime.bundle import Bundle
from edge_runtime.errors import StateError
from edge_runtime.gates import Gates
from edge_runtime.measure import Drift, LatencyModel, calibrate
from edge_runtime.model.jobs import Check
from edge_runtime.objectives import Budget
from edge_runtime.state import StateDir

__all__ = ["Learned"]


class Learned:
    """Thread-safe; whoever closes the model takes none of its locks.

    Args:
        bundle: What is adapted.
        session: The session that serves frames.
        options: That it was opened with.
        state: Where it is kept.
        name: Of the file.
        table: The latency table where it is known already and nothing is remembered; None: it is made when needed.
        seed: Of the calibration.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        options: SessionOptions,
        *,
        state: StateDir,
        name: str,
        table: LatencyModel | None,
        seed: int,
    ) -> None:
        known = None if table is None else Memory(table)
        self.memory: Memory | None = Memory.read(state, name, bundle.manifest.space) or known
        """What is known of this bundle on this machine; None before the first calibration."""
        self.drift = Drift()
        """How the machine's speed has changed since the table was made."""
        self.note = ""
        """Why it could not be kept; empty where it was."""
        self._bundle, self._session, self._options = bundle, session, options
        self._state, self._name, self._seed = state, name, seed
        self._learning = threading.Lock()  # for seconds: a search that was stopped may still be learning the table
        self._keeping = threading.Lock()  # to change what is remembered, and write it

    def limit_ms(self, budget: Budget) -> float | None:
        """The latency limit of a budget, milliseconds; None without one, or where it is not known yet."""
        return budget.latency_ms if self.memory is None else self.memory.limit_ms(budget)

    def table(self, check: Check | None = None) -> LatencyModel:
        """The latency table of this machine; learned once, then remembered."""
        with self._learning:
            if self.memory is None:
                with self._state.scratch() as scratch:
                    table = calibrate(
                        self._bundle, self._session, self._options, seed=self._seed, scratch=scratch, check=check
                    )
                with self._keeping:
                    self._keep(Memory(table))
                return table
            return self.memory.table

    def predictions(self, check: Check | None) -> LatencyModel:
        """The table as the machine is now."""
        table, factor = self.table(check), self.drift.factor
        return table if factor is None else table.drifted(factor)

    def observe(self, time_s: float, latency_ms: float, gates: Gates) -> None:
        """A frame was served by the active subnet in so much time."""
        if self.memory is not None:
            self.drift.add(self.memory.table, gates, latency_ms, time_s)

    def remember(self, result: AdaptResult, budget: Budget, unusable: frozenset[Gates]) -> Memory:
        """What a search found for a budget; and keep it."""
        table, chosen = self.table(), result.choice.score
        with self._keeping:
            energy_mj = self._full_energy_mj(result)
            memory = Memory(table, chosen, result.frontier, result.full_latency_ms, budget, energy_mj, unusable)
            self._keep(memory)
        return memory

    def forget(self, unusable: frozenset[Gates]) -> None:
        """Do not remember these subnets as worth having, but as unusable."""
        with self._keeping:
            if self.memory is not None and unusable != self.memory.unusable:
                self._keep(self.memory.without(unusable))

    def _full_energy_mj(self, result: AdaptResult) -> float | None:
        """As measured in this search; else that of an earlier one at its power, in the time of this one."""
        memory = self.memory
        if result.full_energy_mj is not None or memory is None:
            return result.full_energy_mj
        if memory.full_energy_mj is None or memory.full_latency_ms is None:
            return None
        return memory.full_energy_mj * result.full_latency_ms / memory.full_latency_ms

    def _keep(self, memory: Memory) -> None:
        """Write what is known; a disk that refuses costs the cache, never the answer."""
        self.memory, self.note = memory, ""
        try:
            memory.save(self._state, self._name)
        except StateError as error:
            self.note = str(error)
