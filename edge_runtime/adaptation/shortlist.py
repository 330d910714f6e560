"""From the whole space to a few subnets worth measuring: evolution, then successive halving on a growing subset.

Every candidate that the evolution proposes runs on the first few images, the best of them on more, the best of those on
all. Beside them a ladder of faster subnets is evaluated, so that the frontier reaches down to the fastest one and the
application has somewhere to go when the machine gets busy. Latencies are those of the table here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace

from edge_runtime.adaptation.checkpoint import Course
from edge_runtime.adaptation.finals import SECONDS_OF_POWER
from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.adaptation.trust import Trust
from edge_runtime.additive import AdditiveCost, fastest
from edge_runtime.errors import BudgetError
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import Gates
from edge_runtime.objectives import Score
from edge_runtime.search import EvolutionSearch
from edge_runtime.seeds import near_budget_seeds
from edge_runtime.surrogate import LEAST_SCORES, DamageModel

__all__ = ["Shortlist"]

LADDER = 5
"""Latency levels, the limit the last of them, below which the best by the prior are evaluated in any case."""

IMAGE_SHARE = 0.5
"""Largest share of the time limit that the last stage of images may take."""

SURVIVORS = 3
"""Candidates per finalist that see more than the first images."""


class Shortlist:
    """Narrows one space down for one limit. Run `steps` to its end once; not thread-safe.

    Args:
        evaluator: Runs subnets on the images.
        cost: Predicted p95 of a subnet, milliseconds.
        prior: Expected damage of a subnet, from the bundle.
        trust: What may be chosen.
        course: What to begin with, and what the clock decided already where an interrupted search goes on.
        limit_ms: Predicted p95 up to which subnets are proposed.
        plan: How much is looked at.
        seconds: Gives the busy time since the search began.
    """

    def __init__(
        self,
        *,
        evaluator: Evaluator,
        cost: AdditiveCost,
        prior: AdditiveCost,
        trust: Trust,
        course: Course,
        limit_ms: float,
        plan: AdaptPlan,
        seconds: Callable[[], float],
    ) -> None:
        self.limit_ms = limit_ms
        """Predicted p95 up to which subnets are proposed, milliseconds."""
        self.pool: list[Gates] = []
        """Subnets within the limit that saw all images, best first."""
        self.ladder: list[Gates] = []
        """Faster subnets for the frontier, fastest first."""
        self.fallen: dict[Gates, str] = {}
        """What was cut before it had seen all images, and why."""
        self.goal = evaluator.count
        """Images that the last ones see: all, or as many as the time allows."""
        self.ended_early = False
        """Whether the time limit cut the evolution or the images."""
        self.course = course
        """The course so far; it says enough to go the same way again."""
        self._evaluator, self._cost, self._prior, self._trust = evaluator, cost, prior, trust
        self._full, self._plan, self._seconds = cost.space.default, plan, seconds

    def steps(self) -> Iterator[None]:
        """Fill `pool`, `ladder` and `fallen`, a batch or a piece of planning per item.

        A limit below every prediction leaves them empty.
        """
        first = self._images(0)
        yield from self.evaluate([self._full], first)
        try:
            search = self._evolution()
        except BudgetError:  # by the table; the measurement has the last word
            return
        yield
        self.ladder = yield from self._rungs()
        per_image = yield from self._climb(first)
        self._set_goal(per_image)
        yield from self._evolve(search, deadline=self._plan.seconds - self._reserve(per_image))
        self.pool = self._ranked([score.gates for score in search.best(self._plan.population * self._plan.generations)])
        yield from self._halve()

    def _climb(self, first: int) -> Generator[None, None, float]:
        """Evaluate the ladder on the first images; the first batch of all also paid for memory, these tell the pace.

        Returns:
            What an image of the full subnet takes, seconds.
        """
        runs = sum(self._cost(gates) * self._evaluator.missing(gates, first) for gates in self.ladder)
        began = self._seconds()
        yield from self.evaluate(self.ladder, first)
        per_image = self.course.image_seconds
        if per_image is None:  # where all values were known, the table says it
            spent = self._seconds() - began
            per_image = spent * self._cost(self._full) / runs if runs else self._cost(self._full) / 1e3
            self.course = replace(self.course, image_seconds=per_image or None)
        return per_image

    def evaluate(self, group: Sequence[Gates], count: int) -> Iterator[None]:
        """Run subnets on the first `count` images, a batch per item; those with the same beginning in turn."""
        ordered, goal = sorted(group, key=_beginnings), min(count, self._evaluator.count)
        while waiting := [gates for gates in ordered if self._evaluator.seen(gates) < goal]:
            least = min(self._evaluator.seen(gates) for gates in waiting)
            for gates in waiting:  # all on one batch before the next, whose features are others
                if self._evaluator.seen(gates) == least:
                    self._evaluator.advance(gates, count)
                    yield

    def score(self, gates: Gates) -> Score:
        """The score of a subnet on the images that it has seen, with its predicted p95."""
        return self._evaluator.score(gates, self._cost(gates), count=max(1, self._evaluator.seen(gates)))

    def rank(self, gates: Gates) -> Score:
        """The same as `score` with a quality that ranks subnets better and says less to people."""
        return self._evaluator.score(gates, self._cost(gates), count=max(1, self._evaluator.seen(gates)), fine=True)

    def _evolution(self) -> EvolutionSearch:
        return EvolutionSearch(
            self._cost.space,
            predict_ms=self._cost,
            limit_ms=self.limit_ms,
            prior=self._prior,
            most_damage=self._trust.most_damage(self.limit_ms),
            seeds=self.course.seeds,
            population=self._plan.population,
            generations=self._plan.generations,
            least_gain=self._plan.least_gain,
            seed=self._plan.seed,
        )

    def _evolve(self, search: EvolutionSearch, deadline: float) -> Iterator[None]:
        told, late = 0, False
        while not search.done and not late:
            scores: list[Score] = []
            asked = yield from search.asking()
            yield
            first = {*asked[:1], *self.course.seeds}  # what is likely best comes first, if there is little time
            for gates in sorted(asked, key=lambda gates: (gates not in first, _beginnings(gates))):
                late = self._late(gates, told + len(scores), deadline)
                if late:
                    self.ended_early = True
                    break
                yield from self.evaluate([gates], self._images(0))
                scores.append(self.rank(gates))
            search.tell(sorted(scores, key=lambda score: asked.index(score.gates)))
            told += len(scores)
        self.course = replace(self.course, proposals=told)

    def _late(self, gates: Gates, count: int, deadline: float) -> bool:
        """Whether the evolution ends before its proposal number `count`: where it did before, else for want of time."""
        if self.course.proposals is not None:
            return count >= self.course.proposals
        return self._evaluator.missing(gates, self._images(0)) > 0 and self._seconds() > deadline

    def _rungs(self) -> Generator[None, None, list[Gates]]:
        """The fastest subnet, and two by the prior at each of a few latencies up to the limit; a latency per item."""
        lowest = fastest(self._cost)
        bottom, space = self._cost(lowest), self._cost.space
        rungs = {lowest: None}
        top = min(self.limit_ms, self._cost(space.default))
        for level in range(1, LADDER + 1):
            limit = bottom * (top / bottom) ** (level / LADDER)
            rungs |= dict.fromkeys(near_budget_seeds(space, self._cost, self._prior, limit, 2, self._plan.seed))
            yield
        return sorted(rungs, key=self._cost)

    def _set_goal(self, per_image: float) -> None:
        """Use fewer images where all of them would take more than `IMAGE_SHARE` of the time."""
        affordable = IMAGE_SHARE * self._plan.seconds / (per_image * self._last_runs()) if per_image > 0 else math.inf
        if affordable < self.goal:
            self.goal = max(self._images(0), int(affordable))
            self.ended_early = True

    def _last_runs(self) -> float:
        """Runs of the full subnet that one image of the last stage amounts to."""
        share = min(1.0, self.limit_ms / self._cost(self._full))
        return 1 + share * (self._plan.finalists + 3)

    def _reserve(self, per_image: float) -> float:
        """Seconds that halving and measuring will take, from what an image of the full subnet takes."""
        plan, full_ms = self._plan, self._cost(self._full)
        share = min(1.0, self.limit_ms / full_ms)
        rungs = len(self.ladder) / 2  # faster subnets cost about half of what the limit allows
        middle = share * (SURVIVORS * plan.finalists + rungs) * (self._images(1) - self._images(0))
        images = self.goal * self._last_runs() + middle
        runs_ms = (plan.finalists + 1) * share * full_ms + 2 * full_ms
        measuring = max(1.4 * plan.runs * runs_ms / 1e3, plan.measure_seconds)
        if plan.budget.energy_mj is not None:
            measuring += (plan.finalists + SURVIVORS) * SECONDS_OF_POWER
        return min(per_image * images + measuring, 0.8 * plan.seconds)

    def _images(self, stage: int) -> int:
        """Images of a stage; `goal` after the last subset."""
        sizes = self._plan.subsets
        return min(self.goal, sizes[stage]) if stage < len(sizes) else self.goal

    def _halve(self) -> Iterator[None]:
        """Cut the pool, run what is left on more images, rank it again; the ladder sees all but the last stage."""
        last = len(self._plan.subsets)
        for stage in range(1, last + 1):
            keep = SURVIVORS * self._plan.finalists if stage < last else self._plan.finalists + 2
            survivors, cut = self.pool[:keep], self.pool[keep:]
            for place, gates in enumerate(cut, keep + 1):
                score = self.score(gates)
                self.fallen[gates] = f"place {place} of {len(self.pool)} after {score.samples} images"
            yield from self.evaluate(survivors, self._images(stage))
            yield from self.evaluate(self.ladder, self._images(min(stage, last - 1)))
            self.pool = self._ranked(survivors)

    def likely(self, subnets: Iterable[Gates]) -> dict[Gates, float]:
        """The quality that each of some evaluated subnets most likely has, by all that was evaluated."""
        scores = {gates: self.rank(gates) for gates in (*subnets, *self.fallen)}
        likely = {gates: score.quality for gates, score in scores.items()}
        if len(scores) >= LEAST_SCORES:
            likely = DamageModel(self._prior, list(scores.values())).qualities()
        if not self._evaluator.labelled:
            likely[self._full] = 1.0  # it agrees with itself, and no image can make that uncertain
        return likely

    def _ranked(self, pool: Sequence[Gates]) -> list[Gates]:
        """Best first by the quality that each most likely has."""
        likely = self.likely(pool)
        return sorted(pool, key=lambda gates: (-likely[gates], self._cost(gates)))


def _beginnings(gates: Gates) -> tuple[int, ...]:
    """Puts subnets with the same beginning beside each other."""
    return gates.vector()
