"""Our search as `EdgeModel.adapt` runs it, and what differs from it in one thing: no exact seeds, or no evolution.

`adapt` plans on a latency table and then measures finalists. Here the table is the truth, for every search: finalists
are "measured" on a session that takes exactly as long as it says, and no headroom is left for the next measurement.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

import numpy as np
from search_trial import Trial

from edge_runtime.adaptation.finals import Finals
from edge_runtime.adaptation.job import AdaptJob
from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.adaptation.shortlist import SURVIVORS
from edge_runtime.additive import AdditiveCost, Plan
from edge_runtime.backends.fake import FakeSession
from edge_runtime.bundle import TensorSpec
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import Gates
from edge_runtime.measure import LatencyModel
from edge_runtime.objectives import Budget
from edge_runtime.search import EvolutionSearch

__all__ = ["adapt_by_table", "adapted", "halved", "random_feasible", "random_search", "reference_search", "unseeded"]

NEAR = 0.85
"""Least share of the limit that a random subnet should use: random ones far below it are needlessly bad."""

TRIES = 50
BRIEF_S = 1e-6

_INPUTS = (TensorSpec("image", "float32", (None, 3, 1, 1)),)
_OUTPUTS = (TensorSpec("logits", "float32", (None, 2)),)

REFERENCE = (64, 256)
"""Images on which the reference's candidates are cut, before the best see all."""


def adapted(trial: Trial, evaluator: Evaluator, plan: AdaptPlan) -> None:
    """The whole of `AdaptJob`: exact seeds, evolution, successive halving, the choice among finalists."""
    terms = trial.terms
    exact = replace(plan, budget=Budget(latency_ms=terms.limit_ms), seed=trial.seed)
    cost, full = terms.cost, terms.space.default
    trial.tell(adapt_by_table(cost, cost, terms.prior, evaluator, exact, full, lambda: trial.session.cost_ns))


def adapt_by_table(
    cost: AdditiveCost,
    measured: AdditiveCost,
    prior: AdditiveCost,
    evaluator: Evaluator,
    plan: AdaptPlan,
    current: Gates,
    spent_ns: Callable[[], int],
) -> Gates:
    """What an adaptation chooses where every latency is as a table says; raises as `AdaptJob.steps`.

    Args:
        cost: the table that subnets are proposed by, milliseconds.
        measured: what finalists take.
        prior: the bundle's expected damage.
        evaluator: with the images.
        plan: of the search, with its budget; nothing is left free under the limit.
        current: the subnet that is active before.
        spent_ns: what evaluations have cost so far, for the time limit.
    """
    one = {"image": np.zeros((1, 3, 1, 1), np.float32)}
    timed = FakeSession(cost.space, _INPUTS, _OUTPUTS, cost_ms=measured)
    job = AdaptJob(
        finals=Finals(timed, one, seed=plan.seed, clock_ns=timed.now_ns),
        evaluator=evaluator,
        calibrate=lambda: LatencyModel(cost, 1.0, "kernels", 0.0),
        prior=prior,
        current=current,
        plan=replace(plan, measure_seconds=BRIEF_S, headroom=0.0),
        clock_ns=lambda: spent_ns() + timed.now_ns(),
    )
    for _ in job.steps():
        pass
    assert job.result is not None
    return job.result.choice.score.gates


def unseeded(trial: Trial, evaluator: Evaluator, plan: AdaptPlan) -> None:
    """Our evolution and halving, but the first generation is random."""
    terms = trial.terms
    search = _Unseeded(
        terms.space,
        predict_ms=terms.cost,
        limit_ms=terms.limit_ms,
        prior=terms.prior,
        population=plan.population,
        generations=plan.generations,
        seed=trial.seed,
    )
    pool = _evolved(search, evaluator, terms.cost, plan.subsets[0])
    trial.tell(_raced(evaluator, terms.cost, pool, plan)[0])


def random_search(trial: Trial, evaluator: Evaluator, plan: AdaptPlan, count: int) -> None:
    """So many random subnets within the limit, raced as ours are."""
    pool = random_feasible(trial.terms.plan, count, random.Random(trial.seed))
    trial.tell(_raced(evaluator, trial.terms.cost, pool, plan)[0])


def reference_search(trial: Trial, evaluator: Evaluator, plan: AdaptPlan, factor: int) -> list[Gates]:
    """Our search `factor` times longer and far less hasty; the best, on all images."""
    terms = trial.terms
    search = EvolutionSearch(
        terms.space,
        predict_ms=terms.cost,
        limit_ms=terms.limit_ms,
        prior=terms.prior,
        population=2 * plan.population,
        generations=factor * plan.generations // 2,
        seed=trial.seed,
    )
    first, second = REFERENCE
    pool = _evolved(search, evaluator, terms.cost, first)
    keep = factor * SURVIVORS * plan.finalists
    return halved(evaluator, terms.cost, pool, ((first, keep), (second, keep // 5), (evaluator.count, keep // 5)))


def random_feasible(plan: Plan, count: int, rng: random.Random) -> list[Gates]:
    """Up to `count` distinct random subnets within a limit, near it wherever some are found there."""
    near: dict[Gates, None] = {}
    far: dict[Gates, None] = {}
    for _ in range(TRIES * count):
        if len(near) == count:
            break
        gates = plan.draw(rng, 1.0)
        (near if plan.cost(gates) >= NEAR * plan.limit else far).setdefault(gates)
    return [*near, *far][:count]


def halved(
    evaluator: Evaluator, cost: AdditiveCost, pool: Sequence[Gates], stages: Sequence[tuple[int, int]]
) -> list[Gates]:
    """The best of a pool, best first: at each stage what is left runs on so many images, and so many stay."""
    left = list(pool)
    for images, keep in stages:
        quality = {gates: evaluator.score(gates, cost(gates), count=images).quality for gates in left}
        left = sorted(left, key=lambda gates: (-quality[gates], cost(gates)))[:keep]
    return left


def _raced(evaluator: Evaluator, cost: AdditiveCost, pool: Sequence[Gates], plan: AdaptPlan) -> list[Gates]:
    """`halved` with as many images and survivors as our search has."""
    first, second = plan.subsets
    last = (evaluator.count, plan.finalists)
    return halved(evaluator, cost, pool, ((first, SURVIVORS * plan.finalists), (second, plan.finalists + 2), last))


def _evolved(search: EvolutionSearch, evaluator: Evaluator, cost: AdditiveCost, images: int) -> list[Gates]:
    """Everything that a search asked for, on the first images."""
    asked: list[Gates] = []
    while not search.done:
        fresh = search.ask()
        search.tell([evaluator.score(gates, cost(gates), count=images) for gates in fresh])
        asked += fresh
    return asked


class _Unseeded(EvolutionSearch):
    """Evolution alone: its first generation is random subnets within the limit, and nothing is planned later."""

    def _proposals(self, corrected: Sequence[Gates], drawn: Sequence[Gates]) -> Iterator[Gates]:
        if self._asked:
            yield from super()._proposals(corrected, drawn)
            return
        plan = Plan(self._plan.cost, self._plan.damage.scaled(0.0), self._plan.limit)
        yield from random_feasible(plan, self._population, self._rng)

    def _corrected(self) -> Generator[None, None, list[Gates]]:
        yield
        return []
