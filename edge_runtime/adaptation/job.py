"""One search from the first image to the choice, in slices: shortlist, measure in groups, choose.

`steps` is a generator: whoever drives it decides when each slice runs. A slice is one batch, one burst of runs, or a
piece of planning; the first one may be the calibration of the latency table, which takes a few seconds where it is not
cached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from edge_runtime.adaptation.choice import Choice, choose
from edge_runtime.adaptation.finals import Finals
from edge_runtime.adaptation.groups import Groups
from edge_runtime.adaptation.keeper import Keeper
from edge_runtime.adaptation.outcome import AdaptResult, outcome
from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.adaptation.shortlist import Shortlist
from edge_runtime.adaptation.status import Phase
from edge_runtime.adaptation.trust import Trust
from edge_runtime.additive import AdditiveCost
from edge_runtime.errors import BudgetError
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import Gates
from edge_runtime.measure import Clock, LatencyModel
from edge_runtime.objectives import Score

__all__ = ["AdaptJob"]

LATER = 0.5
"""Part of the time of the first group that each further one is measured for; it has about half as many subnets."""

MORE_GROUPS = 5
"""Further groups that are measured at most; where nothing fitted, so many again after the fastest of all."""


class AdaptJob:
    """Searches one space for one budget on one set of images. Run `steps` to its end once; not thread-safe.

    Args:
        finals: Measures subnets on the session that serves frames.
        evaluator: Runs subnets on the images, which are in random order.
        calibrate: Gives the latency table of this machine; called in the first slice.
        prior: Expected damage of a subnet, from the bundle.
        current: The active subnet.
        plan: How much is looked at.
        keeper: Where the search is kept, and taken up from; None keeps nothing.
        clock_ns: Nanoseconds since some fixed moment.
    """

    def __init__(
        self,
        *,
        finals: Finals,
        evaluator: Evaluator,
        calibrate: Callable[[], LatencyModel],
        prior: AdditiveCost,
        current: Gates,
        plan: AdaptPlan,
        keeper: Keeper | None = None,
        clock_ns: Clock = time.perf_counter_ns,
    ) -> None:
        self.phase: Phase = "calibrate"
        """What it does now."""
        self.result: AdaptResult | None = None
        """What it found; None until `steps` has ended."""
        self.evaluator = evaluator
        """The images, and what subnets answered on them."""
        self._finals, self._calibrate, self._prior = finals, calibrate, prior
        self._current, self._full = current, current.space.default
        self._plan, self._clock_ns = plan, clock_ns
        self._keeper = keeper or Keeper.none()
        self._before_s, self._busy_ns, self._cut = 0.0, 0, False

    @property
    def seconds(self) -> float:
        """Busy time so far, that of an interrupted search that goes on here too; pauses between slices do not count."""
        return self._before_s + self._busy_ns / 1e9

    @property
    def progress(self) -> float:
        """Share done, by the time limit; 1 only at the end."""
        return 1.0 if self.result else min(0.99, self.seconds / self._plan.seconds)

    def close(self) -> None:
        """Overwrite the images, which must be the evaluator's own; what was found stays."""
        self.evaluator.close()
        self._finals.close()

    def steps(self) -> Iterator[None]:
        """Run the whole search, one slice per item; the outcome is in `result` after the last.

        Raises:
            BudgetError: No subnet meets the budget; names the fastest one and its measured latency.
            BackendError: A run failed.
            ResourceError: The power rail that the budget needs gave no reading.
        """
        slices = self._slices()
        while True:
            began_ns = self._clock_ns()
            try:
                next(slices)
                self._keeper.keep(replace(self._shortlist.course, seconds=self.seconds), self.evaluator, self.phase)
            except StopIteration:
                return
            finally:
                self._busy_ns += self._clock_ns() - began_ns
            yield

    def _slices(self) -> Iterator[None]:
        table = self._calibrate()
        self._cost = table.p95_cost
        self._trust = Trust(self._cost, self._prior, lambda: self.evaluator.variety)
        if self._plan.budget.energy_mj is not None:
            self._finals.measure_power(self._full)
        limit_ms = self._proposal_limit_ms(self._finals.full_energy_mj(table.predict_ms(self._full)))
        course = self._keeper.begin(self._cost, self._current)
        self._before_s = course.seconds
        self._shortlist = Shortlist(
            evaluator=self.evaluator,
            cost=self._cost,
            prior=self._prior,
            trust=self._trust,
            course=course,
            limit_ms=limit_ms,
            plan=self._plan,
            seconds=lambda: self.seconds,
        )
        yield
        self.phase = "search"
        try:
            yield from self._shortlist.steps()
        finally:  # finalists are measured without what sharing holds; a search that ended early holds nothing
            self.evaluator.stop_sharing()
        self.phase = "measure"
        # How varied the images are is judged on the same ones, whether subnets ran here or before a restart.
        yield from self._shortlist.evaluate([self._full], self._shortlist.goal)
        groups = Groups(
            self._shortlist,
            self._finals,
            cost=self._cost,
            prior=self._prior,
            trust=self._trust,
            current=self._current,
            plan=self._plan,
        )
        yield from self._measure(groups.first(limit_ms), 1.0)
        yield from self._measure_more(groups)
        choice = self._best()
        if choice is None and not self._heavy():
            yield from self._measure(groups.fastest())
            yield from self._measure_more(groups)  # a noisy minute is over: there may be room above the fastest
            choice = self._best()
        if choice is None:
            self._keeper.forget()
            raise self._infeasible()
        self.result = self._outcome(choice)

    def _measure_more(self, groups: Groups) -> Iterator[None]:
        """Measure what should fit and be better, until there is nothing of the kind; the first group also when late."""
        failed = 0
        for count in range(MORE_GROUPS):
            choice = self._choose(self._bound_ms)
            if choice is not None and not choice.trusted:
                choice = None
            failed += choice is None
            yield
            group = [] if self._heavy() else groups.better(self._limit_ms(), choice, failed)
            if group and count > 0 and self.seconds > self._plan.seconds:
                self._cut, group = True, []
            if not group:
                break
            yield
            yield from self._measure(group)

    def _heavy(self) -> bool:
        """Whether the process is over the memory budget already: its peak is one, whichever subnet runs."""
        return self._peak_bytes() > self._plan.budget.memory_bytes

    def _peak_bytes(self) -> int:
        return max((measurement.peak_bytes or 0) for measurement in self._finals.measurements)

    def _best(self) -> Choice | None:
        """The choice; in doubt a subnet that just meets the budget is better than none, and than the fastest of all."""
        return self._choose(self._bound_ms) or self._choose(self._finals.p95_ms)

    def _proposal_limit_ms(self, full_energy_mj: float | None) -> float:
        """Predicted p95 up to which subnets are proposed; above every subnet where nothing limits the time."""
        full_ms = self._cost(self._full)
        return min(self._plan.budget.limit_ms(full_ms, full_energy_mj) * (1 - self._plan.headroom), 2 * full_ms)

    def _measure(self, group: list[Gates], share: float = LATER) -> Iterator[None]:
        """Finalists see all images, and a group is timed together, for a share of the time that fast ones get."""
        yield from self._shortlist.evaluate(group, self._shortlist.goal)
        yield from self._finals.steps(group, self._plan.runs, share * self._plan.measure_seconds)

    def _limit_ms(self) -> float:
        full_ms = self._finals.expected_p95_ms(self._full)
        return self._plan.budget.limit_ms(full_ms, self._full_energy_mj())

    def _full_energy_mj(self) -> float | None:
        return self._finals.full_energy_mj(self._finals.expected_p95_ms(self._full) / self._finals.tail)

    def _bound_ms(self, gates: Gates) -> float:
        return self._finals.bound_ms(gates, self._plan.headroom)

    def _choose(self, bound_ms: Callable[[Gates], float]) -> Choice | None:
        table_ms = self._limit_ms() / self._finals.correction(self._cost, self._plan.headroom)
        measured = [measurement.gates for measurement in self._finals.measurements]
        return choose(
            self._measured(),
            current=self._current,
            budget=self._plan.budget,
            limit_ms=self._plan.budget.limit_ms(self._finals.expected_p95_ms(self._full)),
            bound_ms=bound_ms,
            energy_mj=self._finals.energy_mj,
            compare=self.evaluator.compare,
            likely=self._shortlist.likely((*measured, *self._shortlist.pool, *self._shortlist.ladder)).__getitem__,
            damage=self._prior,
            most_damage=self._trust.most_damage(table_ms),
        )

    def _measured(self) -> list[Score]:
        return [
            self.evaluator.score(m.gates, m.p95_ms, count=1, peak_bytes=m.peak_bytes, measured=True)
            for m in self._finals.measurements
        ]

    def _infeasible(self) -> BudgetError:
        scores = self._measured()
        quickest = min(scores, key=lambda score: score.latency_ms)
        budget, gates, p95_ms = self._plan.budget, str(quickest.gates), quickest.latency_ms
        peak_bytes = self._peak_bytes()
        if peak_bytes > budget.memory_bytes:  # whatever the time: none was looked for that takes less
            return BudgetError(
                f"the process peaks at {peak_bytes / 2**20:.0f} MiB, above the budget of {budget.memory_mib:g} MiB",
                hint="allow more memory, or adapt with fewer images and threads; subnets share the weights",
            )
        if p95_ms <= budget.limit_ms(self._finals.expected_p95_ms(self._full)) and budget.energy_mj is not None:
            return self._too_hungry(scores, budget.energy_mj)
        least_ms, of_full = p95_ms / (1 - self._plan.headroom), ""
        if budget.fraction is not None:
            full_ms = self._finals.expected_p95_ms(self._full)
            of_full = f" ({least_ms / full_ms:.0%} of the full subnet's {full_ms:.2f} ms)"
        return BudgetError(
            f"no subnet meets the budget of {budget}: the fastest, {gates}, has a measured p95 of {p95_ms:.2f} ms",
            hint=f"allow at least {least_ms:.2f} ms{of_full}, or use more threads",
            fastest=gates,
            latency_ms=p95_ms,
        )

    def _too_hungry(self, scores: list[Score], most_mj: float) -> BudgetError:
        least_mj, score = min(
            ((self._finals.energy_mj(score.gates) or most_mj, score) for score in scores), key=lambda pair: pair[0]
        )
        return BudgetError(
            f"no subnet meets the budget of {most_mj:g} mJ: the thriftiest, {score.gates}, takes {least_mj:.1f} mJ",
            hint=f"allow at least {least_mj / (1 - self._plan.headroom):.1f} mJ",
            fastest=str(score.gates),
            latency_ms=score.latency_ms,
        )

    def _outcome(self, choice: Choice) -> AdaptResult:
        full_ms, full_mj = self._finals.expected_p95_ms(self._full), self._full_energy_mj()
        return outcome(
            choice,
            self._shortlist,
            self._finals,
            cost=self._cost,
            trust=self._trust,
            limit_ms=max(self._plan.budget.limit_ms(full_ms, full_mj), choice.score.latency_ms),
            full_latency_ms=full_ms,
            full_energy_mj=full_mj,
            cut=self._cut,
        )
