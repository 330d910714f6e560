"""The finalists' latency, really measured on the session that serves frames, in slices."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median

from edge_runtime.additive import AdditiveCost
from edge_runtime.backends.base import Array, Session
from edge_runtime.gates import Gates
from edge_runtime.measure import Clock, measure
from edge_runtime.objectives import Measurement, pooled_tail

__all__ = ["Finals"]

SLICE_RUNS = (4, 16)
"""Fewest and most recorded runs of each subnet in one slice."""

MOST_RUNS = 1000
"""Recorded runs of one subnet at most, however fast it is."""

SLICE_MS = 400.0
"""How long a slice should take, milliseconds."""


class Finals:
    """Measures subnets interleaved and keeps every sample. Not thread-safe."""

    def __init__(
        self,
        session: Session,
        inputs: Mapping[str, Array],
        *,
        seed: int,
        clock_ns: Clock = time.perf_counter_ns,
    ) -> None:
        self._session = session
        self._inputs = inputs
        self._seed = seed
        self._clock_ns = clock_ns
        self._measurements: dict[Gates, Measurement] = {}
        self._tail: float | None = None

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Everything measured so far."""
        return tuple(self._measurements.values())

    def has(self, gates: Gates) -> bool:
        """Whether a subnet was measured."""
        return gates in self._measurements

    def p95_ms(self, gates: Gates) -> float:
        """Measured p95 of a subnet that was measured, milliseconds."""
        return self._measurements[gates].p95_ms

    def bound_ms(self, gates: Gates, headroom: float) -> float:
        """What a latency limit must leave room for, milliseconds: the measured p95, and what the next one may be.

        The next one is expected at the median times `tail`, with `headroom`. A subnet's own p95 hangs on its seven
        slowest runs of 140; where one in twenty runs is disturbed it is off by half without meaning anything.
        """
        return max(self.p95_ms(gates), self.expected_p95_ms(gates) / (1 - headroom))

    @property
    def tail(self) -> float:
        """95th percentile over median on this machine, of all runs of all subnets, each over its own median."""
        if self._tail is None:
            self._tail = pooled_tail(self.measurements)
        return self._tail

    def expected_p95_ms(self, gates: Gates) -> float:
        """What the p95 of a subnet that was measured is in the long run, milliseconds: its median times `tail`."""
        return self._measurements[gates].p50_ms * self.tail

    def steps(self, group: Sequence[Gates], runs: int, seconds: float) -> Iterator[None]:
        """Measure a group together, in slices: at least `runs` each, and up to `MOST_RUNS` until `seconds` are over."""
        with self._session.hold(group):
            yield from self._rounds(group, runs, seconds)

    def _rounds(self, group: Sequence[Gates], runs: int, seconds: float) -> Iterator[None]:
        left, slice_runs = runs if group else 0, min(runs, SLICE_RUNS[0])
        deadline_ns = self._clock_ns() + int(seconds * 1e9)
        most = MOST_RUNS
        while left > 0 or (group and most > 0 and self._clock_ns() < deadline_ns):
            self._seed += 1
            taken = measure(
                self._session, self._inputs, group, runs=slice_runs, seed=self._seed, clock_ns=self._clock_ns
            )
            self._keep(taken)
            left, most = left - slice_runs, most - slice_runs
            round_ms = sum(measurement.mean_ms for measurement in taken)
            slice_runs = max(SLICE_RUNS[0], min(SLICE_RUNS[1], int(SLICE_MS / max(round_ms, 1e-3))))
            yield

    def correction(self, cost: AdditiveCost, headroom: float = 0.0) -> float:
        """Expected over predicted p95, the median over what was measured; with a headroom, of what it leaves room for.

        The expected p95 is the median times `tail`, which is steadier than the p95 of each.
        """
        room = self.tail / (1 - headroom) if self._measurements else 1.0
        ratios = [m.p50_ms * room / cost(gates) for gates, m in self._measurements.items() if cost(gates) > 0]
        return median(ratios) if ratios else 1.0

    def _keep(self, taken: Sequence[Measurement]) -> None:
        self._tail = None
        for new in taken:
            old = self._measurements.get(new.gates)
            self._measurements[new.gates] = (
                new
                if old is None
                else replace(
                    new,
                    latencies_ns=old.latencies_ns + new.latencies_ns,
                    warmups=old.warmups + new.warmups,
                    first_ns=old.first_ns,
                )
            )
