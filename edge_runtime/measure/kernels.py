"""From profiled kernels to milliseconds: which share of a kernel's time is real, and what a run takes besides.

The profiler's own work lies inside the interval of each kernel (about 3 us on a server core), and a run takes some time
outside all kernels. So a run of a subnet takes ``a * sum(us) - c * count + b``, where the sum and the count go over its
kernels. The three numbers are fitted to the medians of whole runs of a few subnets, held near what they should be (1,
3 us, 0) where those say little. Of the kernels only the quickest runs count: what disturbs a shared machine only ever
adds, so those are alike for all vectors, and what disturbance adds on average is in the three numbers.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edge_runtime.additive import AdditiveCost
from edge_runtime.backends.base import KernelProfile
from edge_runtime.gates import Gates, GateSpace

__all__ = ["KernelTable"]

PRIOR = (1.0, -3.0, 0.0)
"""Factor of the kernels' time, microseconds per kernel, microseconds per run."""
PRIOR_SPREAD = (0.5, 3.0, 100.0)
RUN_SPREAD = 0.02
"""Relative error of a median of whole runs."""
LEAST_SHARE = 0.05
"""Of a kernel's time what is its own at least, however much of it is the profiler's."""


@dataclass(frozen=True, slots=True)
class KernelTable:
    """Time and number of the kernels of every alternative of a space of choices."""

    us: AdditiveCost
    """Microseconds inside kernels of a quiet run, the profiler's work included."""

    count: AdditiveCost
    """Number of kernels."""

    @classmethod
    def of(cls, space: GateSpace, profile: KernelProfile) -> KernelTable | None:
        """The means over the vectors that chose an alternative; None where a decision shows no kernel at all."""
        us: dict[tuple[int, int], list[float]] = {}
        count: dict[tuple[int, int], list[float]] = {}
        for gates, groups in zip(profile.vectors, profile.groups, strict=True):
            for index, (value, active) in enumerate(zip(gates.values, gates.active, strict=True)):
                if active and isinstance(value, int):
                    us.setdefault((index, value), []).append(groups[index].us)
                    count.setdefault((index, value), []).append(groups[index].count)
        for index, group in enumerate(space.groups):
            if group.size > 1 and not any(any(us.get((index, value), ())) for value in range(group.size)):
                return None  # its nodes were renamed, or are too quick for the profiler
        base_us = statistics.median(kernels.us for kernels in profile.base)
        base_count = statistics.median(kernels.count for kernels in profile.base)
        return cls(_cost(space, base_us, us), _cost(space, base_count, count))

    def fitted(self, medians_us: Sequence[tuple[Gates, float]] = ()) -> AdditiveCost:
        """Latency in milliseconds, fitted to the median runs of some subnets, microseconds."""
        import numpy as np

        prior, spread = np.array(PRIOR), np.array(PRIOR_SPREAD)
        design = np.array([(self.us(g) / t, self.count(g) / t, 1 / t) for g, t in medians_us]).reshape(-1, 3)
        normal = design.T @ design / RUN_SPREAD**2 + np.diag(1 / spread**2)
        change = np.linalg.solve(normal, design.T @ (1 - design @ prior) / RUN_SPREAD**2)
        factor, per_kernel, per_run = (prior + change).tolist()

        def milliseconds(us: float, count: float) -> float:
            return float(max(LEAST_SHARE * us, factor * us + per_kernel * count)) / 1e3

        rows = (map(milliseconds, *pair) for pair in zip(self.us.entries, self.count.entries, strict=True))
        base = max(1e-3, milliseconds(self.us.base, self.count.base) + per_run / 1e3)
        return AdditiveCost(self.us.space, base, tuple(tuple(row) for row in rows))


def _cost(space: GateSpace, base: float, seen: dict[tuple[int, int], list[float]]) -> AdditiveCost:
    rows = (
        tuple(statistics.fmean(seen[index, value]) for value in range(group.size))
        for index, group in enumerate(space.groups)
    )
    return AdditiveCost(space, base, tuple(rows))
