"""How much an adaptation looks at, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.checks import positive, share, whole
from edge_runtime.errors import UsageError
from edge_runtime.objectives import RUNS_NEEDED, Budget

__all__ = ["HEADROOM", "AdaptPlan"]

HEADROOM = 0.04
"""Share of the latency limit that the expected p95 must leave free: the next measurement is not this one."""


@dataclass(frozen=True, slots=True)
class AdaptPlan:
    """The settings of one search. Raises `UsageError` when built invalid."""

    budget: Budget
    """What the chosen subnet must meet."""

    seconds: float = 20.0
    """Busy time after which the search ends; what is measured then is completed, with one group more to aim anew."""

    subsets: tuple[int, ...] = (64, 128)
    """Images that candidates are run on before the best of them see all, ascending."""

    population: int = 16
    """Proposals per generation."""

    generations: int = 5
    """Generations at most."""

    least_gain: float = 0.005
    """Generations end where less is expected of further ones, as a share of the quality. What scores on few images let
    expect is several times what then comes."""

    finalists: int = 4
    """Subnets that are measured, beside the current, the full and one faster subnet."""

    runs: int = RUNS_NEEDED[95] + 10
    """Recorded runs of each finalist at least; a p95 is stated from 130 on."""

    measure_seconds: float = 2.0
    """Fast subnets are run more often, until the first group has been measured for so long: a burst of load is then a
    part. Each further group, of half as many, takes half of it. Rests between bursts count, so in the background it is
    mostly `runs` that decides."""

    headroom: float = HEADROOM
    """Share of the latency limit that the expected p95 must leave free, 0 to below 1."""

    seed: int = 0
    """Of all random decisions."""

    def __post_init__(self) -> None:
        positive("seconds", self.seconds)
        positive("measure_seconds", self.measure_seconds)
        for name in ("population", "generations", "finalists", "runs"):
            whole(name, getattr(self, name), low=1)
        whole("seed", self.seed)
        if not self.subsets or list(self.subsets) != sorted({whole("a subset", size, low=1) for size in self.subsets}):
            raise UsageError(f"subsets {self.subsets} do not ascend")
        share("headroom", self.headroom)
        share("least_gain", self.least_gain)
