"""From a bundle and this machine to a `LatencyModel`, in a few seconds.

Where there is a directory to write to, a handful of Latin gate vectors are profiled, in which every alternative of
every group appears at least once among changing neighbours; the leaf kernels give the table, and whole runs of a few
subnets in the form that will serve say what it means (`kernels.py`). Without one (onnxruntime can write its profile to
a file only) or with groups that are no choices, the table is fitted to whole runs alone (`runs.py`).
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edge_runtime.additive import AdditiveCost, fastest
from edge_runtime.backends import profile_kernels
from edge_runtime.backends.base import KernelProfile, Session, SessionOptions, random_inputs
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, ResourceError, StateError
from edge_runtime.gates import Gates
from edge_runtime.measure.kernels import KernelTable
from edge_runtime.measure.latency import LatencyModel, Method
from edge_runtime.measure.runs import RunTimer, fit_whole_runs
from edge_runtime.measure.timing import Clock, heeding, measure
from edge_runtime.objectives import Measurement, pooled_tail
from edge_runtime.seeds import covering_vectors, random_gates

__all__ = ["calibrate", "check_subnets", "profiled"]

PROFILE_ROUNDS = 12
PROFILE_SHARE = 0.4
"""Of the time for whole runs, what the profile may take; three rounds are made in any case."""
TIMING_FACTOR = 3.0
"""A table by timing has every entry from whole runs, and takes so much longer."""
CHECK_SUBNETS = 5
CHECK_RUNS = 28
"""Runs of each of the five in one part: 140 together, so that its pooled p95 is founded (130 runs)."""
CHECK_PARTS = (3, 9)
"""Parts at least and at most: a single burst of load can fill one, and the median of three passes over it."""
MAX_P95_RATIO = 3.0
"""Above it the machine was disturbed while it was calibrated; planning with it would call every subnet too slow."""

_Parts: TypeAlias = Sequence[Sequence[Measurement]]
_Fit: TypeAlias = Callable[[Sequence[tuple[Gates, float]]], AdditiveCost]


@dataclass(frozen=True, slots=True)
class _Raw:
    """A table before its subnets were run: `fit` makes it milliseconds, given median runs in microseconds."""

    method: Method
    fit: _Fit


def calibrate(
    bundle: Bundle,
    session: Session,
    options: SessionOptions,
    *,
    seed: int,
    scratch: Path | None = None,
    seconds: float = 1.2,
    clock_ns: Clock | None = None,
    check: Callable[[], None] | None = None,
) -> LatencyModel:
    """Learn what each decision costs in the session that will serve, at batch 1.

    Args:
        bundle: The model.
        session: The open session whose latency is to be predicted.
        options: What `session` was opened with; the profiled session is opened alike.
        seed: Decides the subnets and their order.
        scratch: An existing directory for the profile (`StateDir.scratch`); nothing is left in it. None: calibrate by
            timing alone, which is less exact.
        seconds: Time for the whole runs that the scale needs; three times as much more for a table by timing. The
            fewest runs that make sense are made in any case.
        clock_ns: The clock, nanoseconds; None for the machine's own.
        check: Called beside each whole run; what it raises ends the calibration.

    Raises:
        BackendError: A run failed.
    """
    wall = heeding(clock_ns or time.perf_counter_ns, check)
    # Thread time leaves out the moments in which other programs had the CPU; wall time of a busy machine does not.
    own = heeding(clock_ns or time.thread_time_ns, check)
    raw = _raw(bundle, session, options, seed, scratch, seconds, own)
    inputs, subnets = random_inputs(session.inputs, seed=seed), check_subnets(raw.fit(()), seed)
    deadline_ns = wall() + int(seconds * 1e9 / 2)
    parts: list[list[Measurement]] = []
    fewest, most = CHECK_PARTS
    with session.hold(subnets):  # the scale is that of the form that will serve
        while len(parts) < fewest or (len(parts) < most and wall() < deadline_ns):
            part_seed = seed + len(parts)
            parts.append(
                measure(session, inputs, subnets, runs=CHECK_RUNS, seconds=seconds / 3, seed=part_seed, clock_ns=wall)
            )
    return _scaled(raw, parts)


def _raw(
    bundle: Bundle,
    session: Session,
    options: SessionOptions,
    seed: int,
    scratch: Path | None,
    seconds: float,
    clock_ns: Clock,
) -> _Raw:
    """By kernels where that can be, otherwise by whole runs."""
    space = bundle.manifest.space
    profile = profiled(bundle, session, options, seed=seed, scratch=scratch, seconds=PROFILE_SHARE * seconds)
    table = None if profile is None else KernelTable.of(space, profile)
    if table is not None:
        return _Raw("kernels", table.fitted)
    timer = RunTimer(session, random_inputs(session.inputs, seed=seed), clock_ns)
    cost = fit_whole_runs(timer, space, seed=seed, seconds=TIMING_FACTOR * seconds)
    return _Raw("timing", lambda _: cost)


def profiled(
    bundle: Bundle, session: Session, options: SessionOptions, *, seed: int, scratch: Path | None, seconds: float
) -> KernelProfile | None:
    """Kernels of vectors that cover every alternative, in the form of `session`; at batch 1.

    None where groups are no choices, there is no directory, or the library, the disk or the memory gives no profile.
    """
    space = bundle.manifest.space
    if scratch is None or not all(group.kind == "choice" for group in space.groups):
        return None
    inputs, vectors = random_inputs(session.inputs, seed=seed), covering_vectors(space)
    try:
        return profile_kernels(
            bundle,
            options,
            inputs,
            vectors,
            rounds=PROFILE_ROUNDS,
            seconds=seconds,
            scratch=scratch,
            session=session,
        )
    except (BackendError, StateError, ResourceError):
        return None


def check_subnets(cost: AdditiveCost, seed: int) -> list[Gates]:
    """The full subnet, the fastest, and the most evenly spread between them out of some random ones."""
    rng = random.Random(seed)
    slow, fast = cost.space.default, fastest(cost)
    pool = sorted({random_gates(cost.space, rng) for _ in range(64)}, key=lambda gates: gates.vector())
    wanted = CHECK_SUBNETS - 2
    between = [
        min(pool, key=lambda gates: abs(cost(gates) - target))
        for target in (cost(fast) + (cost(slow) - cost(fast)) * (k + 1) / (wanted + 1) for k in range(wanted))
    ]
    return list(dict.fromkeys([slow, fast, *between]))


def _scaled(raw: _Raw, parts: _Parts) -> LatencyModel:
    """The table times the median ratio of measured to predicted; the p95 from the runs, each over its own median.

    Medians over the parts: what a burst of load did to some of them is no property of the machine.
    """
    subnets = [measurement.gates for measurement in parts[0]]
    medians = [statistics.median(m.p50_ms for m in each) for each in zip(*parts, strict=True)]
    found = raw.fit([(gates, 1e3 * p50) for gates, p50 in zip(subnets, medians, strict=True)])
    scale = statistics.median(p50 / found(gates) for p50, gates in zip(medians, subnets, strict=True))
    error = statistics.median(abs(scale * found(gates) / p50 - 1) for p50, gates in zip(medians, subnets, strict=True))
    tail = statistics.median(pooled_tail(part) for part in parts)
    return LatencyModel(found.scaled(scale), min(MAX_P95_RATIO, tail), raw.method, error)
