"""A latency table from whole runs alone, where no kernel can be profiled: less exact, enough to plan with.

About 11 % error on 16 groups under load, where the kernel profile has 3 %; finalists are measured anyway.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_runtime.additive import AdditiveCost, fastest
from edge_runtime.backends.base import Array, Session
from edge_runtime.gates import Gates, GateSpace
from edge_runtime.measure.timing import Clock
from edge_runtime.seeds import random_gates

__all__ = ["RunTimer", "fit_whole_runs"]

RIDGE = 1.0
"""Weight of the ridge penalty, in vectors; chosen on a 16-group network under load."""
MAX_REPEATS = 3
FASTEST_SHARE = 0.02
"""Share of the full subnet's time that the table leaves to the fastest subnet."""


@dataclass(frozen=True, slots=True)
class RunTimer:
    """Times one run of a subnet."""

    session: Session
    inputs: Mapping[str, Array]
    clock_ns: Clock

    def __call__(self, gates: Gates) -> int:
        """Nanoseconds of one run."""
        start = self.clock_ns()
        self.session.run(self.inputs, gates)
        return self.clock_ns() - start


def fit_whole_runs(timer: RunTimer, space: GateSpace, *, seed: int, seconds: float) -> AdditiveCost:
    """Ridge regression of paired run times on what differs from the full subnet, milliseconds.

    Args:
        timer: Times one run.
        space: Groups of any kind.
        seed: Decides the random subnets among those that are timed.
        seconds: Ends the repeats; every subnet is timed once in any case.
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


def _paired(timer: RunTimer, reference: Gates, vectors: Sequence[Gates], seconds: float) -> tuple[float, list[float]]:
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
