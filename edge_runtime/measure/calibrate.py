"""From a bundle and this machine to a `LatencyModel`, in a few seconds.

Where there is a directory to write to, one profiled session runs a handful of Latin gate vectors, in which every
alternative of every group appears at least once among changing neighbours; the leaf kernels give the table and whole
runs of five subnets give its scale. Without one (onnxruntime can write its profile to a file only) or with groups that
are no choices, the table is fitted to whole runs, each paired with a reference run before and after it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.additive import AdditiveCost, fastest
from edge_runtime.backends import profile_kernels
from edge_runtime.backends.base import Array, KernelProfile, Session, SessionOptions, random_inputs
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, StateError
from edge_runtime.gates import Gates, GateSpace
from edge_runtime.measure.latency import LatencyModel, Method
from edge_runtime.measure.timing import Clock, measure
from edge_runtime.objectives import Measurement, pooled_tail
from edge_runtime.search import covering_vectors, random_gates

__all__ = ["calibrate"]

PROFILE_ROUNDS = 8
CHECK_SUBNETS = 5
CHECK_RUNS = 28
"""Runs of each of the five in one part: 140 together, so that its pooled p95 is founded (130 runs)."""
CHECK_PARTS = (3, 9)
"""Parts at least and at most: a single burst of load can fill one, and the median of three passes over it."""
RIDGE = 1.0
"""Weight of the ridge penalty, in vectors; chosen on a 16-group network under load (see `_fit_by_timing`)."""
MAX_REPEATS = 3
FASTEST_SHARE = 0.02
"""Share of the full subnet's time that a table by timing leaves to the fastest subnet."""
MAX_P95_RATIO = 3.0
"""Above it the machine was disturbed while it was calibrated; planning with it would call every subnet too slow."""


def calibrate(
    bundle: Bundle,
    session: Session,
    options: SessionOptions,
    *,
    seed: int,
    scratch: Path | None = None,
    seconds: float = 4.0,
    clock_ns: Clock | None = None,
) -> LatencyModel:
    """Learn what each decision costs in the session that will serve, at batch 1.

    Args:
        bundle: The model.
        session: The open session whose latency is to be predicted.
        options: What `session` was opened with; the profiled session is opened alike.
        seed: Decides the subnets and their order.
        scratch: An existing directory for the profile (`StateDir.scratch`); nothing is left in it. None: calibrate by
            timing alone, which is less exact.
        seconds: Time for the whole runs that the scale needs, of which a slow model may take half as much again, and
            once more for a table by timing; the fewest runs that make sense are made in any case.
        clock_ns: The clock, nanoseconds; None for the machine's own.

    Raises:
        BackendError: A run failed.
    """
    space = bundle.manifest.space
    inputs = random_inputs(session.inputs, seed=seed)
    raw: AdditiveCost | None = None
    method: Method = "kernels"
    if scratch and all(group.kind == "choice" for group in space.groups):
        raw = _profiled(bundle, options, inputs, scratch, session)
    if raw is None:
        # Thread time leaves out the moments in which other programs had the CPU; wall time of a busy machine does not.
        timer = _Timer(session, inputs, clock_ns or time.thread_time_ns)
        raw, method = _fit_by_timing(timer, space, seed=seed, seconds=seconds), "timing"
    subnets = _check_subnets(raw, seed)
    wall = clock_ns or time.perf_counter_ns
    deadline_ns = wall() + int(seconds * 1e9 / 2)
    parts: list[list[Measurement]] = []
    fewest, most = CHECK_PARTS
    with session.hold(subnets):  # the scale is that of the form that will serve
        while len(parts) < fewest or (len(parts) < most and wall() < deadline_ns):
            part_seed = seed + len(parts)
            parts.append(
                measure(session, inputs, subnets, runs=CHECK_RUNS, seconds=seconds / 2, seed=part_seed, clock_ns=wall)
            )
    return _scaled(raw, parts, method)


def _profiled(
    bundle: Bundle, options: SessionOptions, inputs: Mapping[str, Array], scratch: Path, session: Session
) -> AdditiveCost | None:
    """The table from leaf kernels; None where this onnxruntime or this disk gives no profile."""
    space = bundle.manifest.space
    vectors = covering_vectors(space)
    try:
        profile = profile_kernels(
            bundle, options, inputs, vectors, rounds=PROFILE_ROUNDS, scratch=scratch, session=session
        )
    except (BackendError, StateError):
        return None
    columns = zip(space.groups, zip(*profile.group_us, strict=True), strict=True)
    if not all(any(times) for group, times in columns if group.size > 1):
        return None  # A decision without a single kernel: its nodes were renamed, or are too quick for the profiler.
    return _table_of(space, profile)


def _table_of(space: GateSpace, profile: KernelProfile) -> AdditiveCost:
    """The profile as an additive cost in milliseconds: per alternative the mean over the vectors that chose it."""
    seen: dict[tuple[int, int], list[float]] = {}
    for gates, times in zip(profile.vectors, profile.group_us, strict=True):
        for index, (value, active) in enumerate(zip(gates.values, gates.active, strict=True)):
            if active and isinstance(value, int):
                seen.setdefault((index, value), []).append(times[index])
    rows = tuple(
        tuple(statistics.fmean(seen[index, value]) / 1e3 for value in range(group.size))
        for index, group in enumerate(space.groups)
    )
    return AdditiveCost(space, max(statistics.median(profile.base_us), 1.0) / 1e3, rows)


def _check_subnets(cost: AdditiveCost, seed: int) -> list[Gates]:
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


def _scaled(raw: AdditiveCost, parts: Sequence[Sequence[Measurement]], method: Method) -> LatencyModel:
    """`raw` times the median ratio of measured to predicted; the p95 from the runs, each over its own median.

    Medians over the parts: what a burst of load did to some of them is no property of the machine.
    """
    medians = [statistics.median(m.p50_ms for m in each) for each in zip(*parts, strict=True)]
    subnets = [measurement.gates for measurement in parts[0]]
    scale = statistics.median(p50 / raw(gates) for p50, gates in zip(medians, subnets, strict=True))
    error = statistics.median(abs(scale * raw(gates) / p50 - 1) for p50, gates in zip(medians, subnets, strict=True))
    tail = statistics.median(pooled_tail(part) for part in parts)
    rows = tuple(tuple(entry * scale for entry in row) for row in raw.entries)
    cost = AdditiveCost(raw.space, raw.base * scale, rows)
    return LatencyModel(cost, min(MAX_P95_RATIO, tail), method, error)


@dataclass(frozen=True, slots=True)
class _Timer:
    """Times one run of a subnet."""

    session: Session
    inputs: Mapping[str, Array]
    clock_ns: Clock

    def __call__(self, gates: Gates) -> int:
        start = self.clock_ns()
        self.session.run(self.inputs, gates)
        return self.clock_ns() - start


def _fit_by_timing(timer: _Timer, space: GateSpace, *, seed: int, seconds: float) -> AdditiveCost:
    """Ridge regression of paired run times on what differs from the full subnet, milliseconds.

    About 11 % error on 16 groups under load, where the kernel profile has 3 %: enough to plan with, because the
    finalists of a search are measured anyway.
    """
    import numpy as np

    features = _features(space)
    vectors = _timing_vectors(space, features, seed)
    reference_ms, ratios = _paired(timer, space.default, vectors, seconds)
    design = np.array([[_has(gates, index, value) for index, value in features] for gates in vectors], float)
    normal = design.T @ design + RIDGE * np.eye(len(features))
    weights = np.linalg.solve(normal, design.T @ (np.array(ratios) - 1.0)) * reference_ms
    cost = _from_weights(space, reference_ms, features, weights.tolist())
    # Savings that were found one by one may add up to more than there is: shrink them so that something is left.
    saved, most = reference_ms - cost(fastest(cost)), reference_ms * (1 - FASTEST_SHARE)
    return cost if saved <= most else _from_weights(space, reference_ms, features, (weights * most / saved).tolist())


def _from_weights(
    space: GateSpace, reference_ms: float, features: Sequence[tuple[int, int]], weights: Sequence[float]
) -> AdditiveCost:
    """The full subnet's time plus one weight per feature, as a cost table."""
    rows = [[0.0] * group.size for group in space.groups]
    for (index, value), weight in zip(features, weights, strict=True):
        rows[index][value] = weight
    base = reference_ms
    for index, group in enumerate(space.groups):
        if group.kind != "choice":
            # The feature is a bit that is off; the cost table pays for bits that are on.
            base += sum(rows[index])
            rows[index] = [-weight for weight in rows[index]]
    return AdditiveCost(space, base, tuple(tuple(row) for row in rows))


def _features(space: GateSpace) -> list[tuple[int, int]]:
    """Every way to differ from the full subnet: another alternative than 0, or a bit that is off."""
    return [
        (index, value)
        for index, group in enumerate(space.groups)
        for value in range(1 if group.kind == "choice" else 0, group.size)
    ]


def _has(gates: Gates, index: int, feature: int) -> bool:
    value = gates.values[index]
    return value == feature if isinstance(value, int) else not value[feature]


def _timing_vectors(space: GateSpace, features: Sequence[tuple[int, int]], seed: int) -> list[Gates]:
    """Each feature alone, for what it costs, and as many random subnets again, for how costs add up."""
    rng = random.Random(seed)
    alone: list[Gates] = []
    for index, value in features:
        group = space.groups[index]
        if group.kind == "choice":
            alone.append(space.default.replace(index, value))
        elif group.size > 1:
            alone.append(space.default.replace(index, tuple(int(bit != value) for bit in range(group.size))))
    return alone + [random_gates(space, rng) for _ in range(len(alone) + 1)]


def _paired(timer: _Timer, reference: Gates, vectors: Sequence[Gates], seconds: float) -> tuple[float, list[float]]:
    """Median time of `reference` in milliseconds, and per vector its median ratio to the references around it."""
    ratios: list[list[float]] = [[] for _ in vectors]
    references_ns: list[int] = []
    stop_ns = time.perf_counter_ns() + int(seconds * 1e9)
    for _ in range(MAX_REPEATS):
        for gates, found in zip(vectors, ratios, strict=True):
            timer(reference)
            before = timer(reference)
            timer(gates)
            own = timer(gates)
            timer(reference)
            after = timer(reference)
            found.append(2 * own / max(1, before + after))
            references_ns += [before, after]
        if time.perf_counter_ns() >= stop_ns:
            break
    return statistics.median(references_ns) / 1e6, [statistics.median(found) for found in ratios]
