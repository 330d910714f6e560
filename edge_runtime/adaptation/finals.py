"""The finalists' latency and energy, really measured on the session that serves frames, in slices."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median

from edge_runtime.additive import AdditiveCost
from edge_runtime.backends.base import Array, Session
from edge_runtime.gates import Gates
from edge_runtime.measure import Candidate, Clock, mean_power_w, measure_in_bursts
from edge_runtime.measure.power import SETTLE_SECONDS
from edge_runtime.objectives import Measurement, pooled_tail
from edge_runtime.sense import Rail

__all__ = ["Finals"]

SERIES_RUNS = (4, 16)
"""Fewest and most recorded runs of each subnet in one series, after which the clock is looked at."""

MOST_RUNS = 500
"""Recorded runs of one subnet at most, however fast it is."""

SERIES_MS = 400.0
"""How long a series should take, milliseconds."""

POWER_SECONDS, POWER_ROUNDS = 0.2, 2
"""How long the power of a subnet is read at once, and how often: a sensor is slower than a run."""

SECONDS_OF_POWER = POWER_ROUNDS * (SETTLE_SECONDS + POWER_SECONDS)
"""What that takes for one subnet."""


class Finals:
    """Measures subnets interleaved and keeps every sample. Not thread-safe.

    Args:
        session: The session that serves frames.
        inputs: One batch in the form of `session.inputs`.
        seed: Of the order of the runs.
        rail: Where the board's power is read; None, and energies are not known.
        clock_ns: Nanoseconds since some fixed moment.
    """

    def __init__(
        self,
        session: Session,
        inputs: Mapping[str, Array],
        *,
        seed: int,
        rail: Rail | None = None,
        clock_ns: Clock = time.perf_counter_ns,
    ) -> None:
        self._session = session
        self._inputs = inputs
        self._seed = seed
        self._clock_ns = clock_ns
        self._rail = rail
        self._measurements: dict[Gates, Measurement] = {}
        self._powers_w: dict[Gates, float] = {}
        self._tail: float | None = None

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Everything measured so far."""
        return tuple(self._measurements.values())

    def close(self) -> None:
        """Overwrite the inputs, which must be its own; what was measured stays."""
        for array in self._inputs.values():
            array[...] = 0

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

    def energy_mj(self, gates: Gates) -> float | None:
        """What a frame takes from the whole board, millijoules: power times median; None where there is no rail."""
        return self._powers_w[gates] * self._measurements[gates].p50_ms if self._rail else None

    def full_energy_mj(self, full_p50_ms: float) -> float | None:
        """What the full subnet would take at the median power of what was measured; None where there is no rail.

        It is what a limit on the energy is turned into one on the time by, so the power of those near the limit counts.
        """
        return median(self._powers_w.values()) * full_p50_ms if self._rail else None

    def steps(self, group: Sequence[Gates], runs: int, seconds: float) -> Iterator[None]:
        """Measure a group together, a burst of one subnet per item.

        At least `runs` of each, and up to `MOST_RUNS` until `seconds` are over.
        """
        with self._session.hold(group):
            yield from self._rounds(group, runs, seconds)
            yield from self._power_rounds([gates for gates in group if gates not in self._powers_w])

    def measure_power(self, gates: Gates) -> None:
        """Measure only the power of one subnet, at once; nothing without a rail."""
        with self._session.hold([gates]):
            for _ in self._power_rounds([gates]):
                pass

    def _power_rounds(self, group: Sequence[Gates]) -> Iterator[None]:
        if self._rail is None:
            return
        found: dict[Gates, list[float]] = {gates: [] for gates in group}
        for _ in range(POWER_ROUNDS):
            for gates, powers_w in found.items():
                powers_w.append(self._power_w(gates, self._rail))
                yield
        self._powers_w |= {gates: fmean(powers_w) for gates, powers_w in found.items()}

    def _power_w(self, gates: Gates, rail: Rail) -> float:
        return mean_power_w(self._session, self._inputs, gates, rail, seconds=POWER_SECONDS, clock_ns=self._clock_ns)

    def _rounds(self, group: Sequence[Gates], runs: int, seconds: float) -> Iterator[None]:
        left, series_runs = runs if group else 0, min(runs, SERIES_RUNS[0])
        deadline_ns = self._clock_ns() + int(seconds * 1e9)
        most = MOST_RUNS
        while left > 0 or (group and most > 0 and self._clock_ns() < deadline_ns):
            self._seed += 1
            candidates = [Candidate(self._session, self._inputs, gates) for gates in group]
            taken = yield from measure_in_bursts(candidates, runs=series_runs, seed=self._seed, clock_ns=self._clock_ns)
            self._keep(taken)
            left, most = left - series_runs, most - series_runs
            round_ms = sum(measurement.mean_ms for measurement in taken)
            series_runs = max(SERIES_RUNS[0], min(SERIES_RUNS[1], int(SERIES_MS / max(round_ms, 1e-3))))

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
