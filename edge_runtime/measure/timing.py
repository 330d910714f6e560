"""Timing: candidates interleaved in rounds of rotating order, raw samples kept.

A shared or hot machine has slow and fast minutes; interleaving gives every candidate the same share of both. After each
change of candidate one run is made and not recorded: it brings that subnet's weights back into the caches.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from edge_runtime import sense
from edge_runtime.backends.base import Array, Session
from edge_runtime.errors import UsageError
from edge_runtime.gates import Gates
from edge_runtime.objectives import Measurement
from edge_runtime.slices import finished

__all__ = ["Candidate", "Clock", "heeding", "measure", "measure_candidates", "measure_in_bursts"]

Clock = Callable[[], int]
"""Nanoseconds since some fixed moment; `time.perf_counter_ns`, or a fake session's own."""

BURST = 4
MAX_RUNS = 1_000_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing to time. Sessions may differ between candidates: that is how a subnet stands beside its oracle."""

    session: Session
    """Where it runs."""

    inputs: Mapping[str, Array]
    """One batch in the form of `session.inputs`."""

    gates: Gates
    """Which subnet; the default for a session without gates."""

    def run(self) -> object:
        """One run."""
        return self.session.run(self.inputs, self.gates)


def measure(
    session: Session,
    inputs: Mapping[str, Array],
    vectors: Sequence[Gates],
    *,
    runs: int | None = None,
    seconds: float | None = None,
    seed: int,
    clock_ns: Clock = time.perf_counter_ns,
) -> list[Measurement]:
    """Time subnets of one session, interleaved; one `Measurement` per vector, in their order.

    Args:
        session: The session that really serves frames.
        inputs: One batch in the form of `session.inputs`.
        vectors: The subnets, at least one.
        runs: Recorded runs of each subnet, 1 or more.
        seconds: Stop after the round in which this much time has passed, even if `runs` are not complete. At least one
            of `runs` and `seconds` is given.
        seed: Decides the order of the first round.
        clock_ns: The clock, nanoseconds.

    Raises:
        UsageError: No vectors, or neither `runs` nor `seconds`.
        BackendError: A run failed.
    """
    candidates = [Candidate(session, inputs, gates) for gates in vectors]
    return measure_candidates(candidates, runs=runs, seconds=seconds, seed=seed, clock_ns=clock_ns)


def heeding(clock_ns: Clock, check: Callable[[], None] | None) -> Clock:
    """A clock that calls `check` before each reading; what that raises ends a measurement between two runs."""
    if check is None:
        return clock_ns

    def clock() -> int:
        check()
        return clock_ns()

    return clock


def measure_candidates(
    candidates: Sequence[Candidate],
    *,
    runs: int | None = None,
    seconds: float | None = None,
    seed: int,
    clock_ns: Clock = time.perf_counter_ns,
) -> list[Measurement]:
    """As `measure`, for candidates that may live in different sessions."""
    _check_limits(candidates, runs, seconds)
    wanted = MAX_RUNS if runs is None else runs
    began_ns = clock_ns()
    bursts = measure_in_bursts(
        candidates,
        runs=wanted,
        seed=seed,
        clock_ns=clock_ns,
        enough=lambda: seconds is not None and clock_ns() >= began_ns + int(seconds * 1e9),
    )
    next(bursts)
    began_ns = clock_ns()  # the first burst of all pays for memory
    return finished(bursts)


def measure_in_bursts(
    candidates: Sequence[Candidate],
    *,
    runs: int,
    seed: int,
    clock_ns: Clock = time.perf_counter_ns,
    enough: Callable[[], bool] = lambda: False,
) -> Generator[None, None, list[Measurement]]:
    """The same in slices, a few runs of one candidate per item; what it returns are the measurements.

    Args:
        candidates: At least one.
        runs: Recorded runs of each, 1 or more.
        seed: Decides the order of the first round.
        clock_ns: The clock, nanoseconds.
        enough: Asked after each round; ends it before `runs` are complete.
    """
    series = [_Series(candidate, clock_ns) for candidate in candidates]
    order = list(series)
    random.Random(seed).shuffle(order)
    while len(series[0].samples_ns) < runs:
        for one in order:
            one.visit(min(BURST, runs - len(one.samples_ns)))
            yield
        order = order[1:] + order[:1]
        if enough():
            break
    taken_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    peak = sense.process_memory().peak_bytes
    return [one.measurement(None if isinstance(peak, sense.Unknown) else peak, taken_at) for one in series]


class _Series:
    """The runs of one candidate."""

    def __init__(self, candidate: Candidate, clock_ns: Clock) -> None:
        self._candidate, self._clock_ns = candidate, clock_ns
        self._first_ns = self._warmups = 0
        self.samples_ns: list[int] = []

    def visit(self, runs: int) -> None:
        """One run that is not recorded, then `runs` that are; before the first visit's the first run of all, noted."""
        if not self._warmups:
            self._first_ns = self._timed()
            self._warmups = 1
        self._candidate.run()
        self._warmups += 1
        self.samples_ns.extend(self._timed() for _ in range(runs))

    def _timed(self) -> int:
        start = self._clock_ns()
        self._candidate.run()
        return self._clock_ns() - start

    def measurement(self, peak_bytes: int | None, taken_at: str) -> Measurement:
        """The record."""
        session = self._candidate.session
        return Measurement(
            gates=self._candidate.gates,
            latencies_ns=tuple(self.samples_ns),
            warmups=self._warmups,
            first_ns=self._first_ns,
            threads=session.threads,
            backend=session.name,
            peak_bytes=peak_bytes,
            taken_at=taken_at,
        )


def _check_limits(candidates: Sequence[Candidate], runs: int | None, seconds: float | None) -> None:
    if not candidates:
        raise UsageError("there is nothing to measure", hint="give at least one gate vector")
    if runs is None and seconds is None:
        raise UsageError("a measurement needs an end", hint="give runs, seconds, or both")
    if runs is not None and not 1 <= runs <= MAX_RUNS:
        raise UsageError(f"{runs} runs cannot be made", hint=f"give 1 to {MAX_RUNS}")
    if seconds is not None and not 0 < seconds < 1e6:
        raise UsageError(f"{seconds} seconds cannot be measured", hint="give more than 0")
