"""Search by ask and tell: which subnets are worth looking at next. Sees no clock, no file and no device.

`EvolutionSearch` proposes subnets that are predicted to be within a latency limit; the caller measures their quality
and tells it. The first generation comes from an exact plan over predicted latency and prior damage
(`edge_runtime.additive`). Later ones are plans again, over damages that the told scores have corrected
(`edge_runtime.surrogate`), and children of the best told so far: crossover, mutation, repair, and of a few such
children the one with the least damage. Every ask is a bounded piece of work, no subnet is asked twice, and the number
of asks is bounded, so that a search always ends; it ends sooner where what is still expected of it is not worth the
time. The same seed and scores give the same asks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Iterator, Sequence
from statistics import fmean

from edge_runtime.additive import AdditiveCost, Plan
from edge_runtime.checks import share, whole
from edge_runtime.errors import UsageError
from edge_runtime.gates import Gates, GateSpace, GateValue
from edge_runtime.objectives import Score
from edge_runtime.seeds import near_budget, plan_within, reserve
from edge_runtime.slices import finished

__all__ = ["EvolutionSearch"]

_CHILD_TRIES = 24  # attempts at a child that is new and within the limit, for each place in a generation
_SCREENED = 3  # children of which the one with the least expected damage is asked
_PROPOSALS_PER_SLICE = 4  # between two items of `asking`; a child takes up to a millisecond and more


class EvolutionSearch:
    """Constrained evolution over one gate space.

    Args:
        space: What is searched.
        predict_ms: Predicted p95 of a subnet, milliseconds.
        limit_ms: Subnets predicted above it are never asked, milliseconds, above 0.
        prior: Expected damage of a subnet, lower is better; None: what is predicted slower is expected to be better.
        most_damage: Subnets of which the prior expects more are never asked.
        seeds: Asked first, after the plan's best, where they are within both bounds. Example: the active subnet.
        population: New subnets per ask, at least 1.
        generations: Asks, at least 1.
        least_gain: Ends where the best subnet of the space is expected to be better than the best that was asked by
            less than this, as a share of its quality, 0 to below 1. Example: 0.005, half a point where all are right.
        seed: Of the random generator.

    Raises:
        BudgetError: Not even the fastest subnet is predicted to be within the limit.
        UsageError: An argument outside its range.
    """

    def __init__(
        self,
        space: GateSpace,
        *,
        predict_ms: AdditiveCost,
        limit_ms: float,
        prior: AdditiveCost | None = None,
        most_damage: float = math.inf,
        seeds: Sequence[Gates] = (),
        population: int = 24,
        generations: int = 5,
        least_gain: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._space = space
        self._plan = plan_within(space, predict_ms, prior, limit_ms)
        self._most_damage = most_damage
        self._population = whole("population", population, low=1)
        self._left = whole("generations", generations, low=1)
        self._least_gain = share("least_gain", least_gain)
        self._rng = random.Random(whole("seed", seed))
        self._first = [_of(space, gates) for gates in seeds]
        self._reserve = reserve(self._plan)
        self._asked: set[Gates] = set()
        self._told: dict[Gates, Score] = {}
        self._screen = self._plan.damage
        self.expected_gain = math.inf
        """What the best of the space should gain on the best that was asked, in log quality: about the share of it."""

    @property
    def done(self) -> bool:
        """Whether `ask` has nothing more to give: all generations were asked, nothing new was found or is worth it."""
        return self._left == 0

    def ask(self) -> list[Gates]:
        """The next generation: distinct subnets within the limit that were not asked before; empty when `done`."""
        return finished(self.asking())

    def asking(self) -> Generator[None, None, list[Gates]]:
        """What `ask` does, a piece of planning per item: mostly milliseconds. To be run to its end before the next."""
        if self.done:
            return []
        corrected = yield from self._corrected()
        if self.expected_gain < self._least_gain:
            self._left = 0
            return []
        drawn = [] if self._asked else (yield from near_budget(self._plan, self._population, self._rng))
        fresh: list[Gates] = []
        for number, gates in enumerate(self._proposals(corrected, drawn)):
            if number % _PROPOSALS_PER_SLICE == 0:
                yield
            if self._is_new(gates):
                self._asked.add(gates)
                fresh.append(gates)
            if len(fresh) == self._population:
                break
        self._left = self._left - 1 if fresh else 0
        return fresh

    def _is_new(self, gates: Gates) -> bool:
        """Whether a subnet may be asked, and was not yet."""
        return gates not in self._asked and self._plan.fits(gates) and self._plan.damage(gates) <= self._most_damage

    def tell(self, scores: Sequence[Score]) -> None:
        """Report scores, of asked subnets or of others of the space; a second score of a subnet replaces the first."""
        for score in scores:
            self._told[_of(self._space, score.gates)] = score

    def best(self, k: int) -> list[Score]:
        """The `k` best scores told: within the limit by their own latency first, then by quality, then by latency."""
        return sorted(self._told.values(), key=self._rank)[:k]

    def _rank(self, score: Score) -> tuple[float, float, float, tuple[int, ...]]:
        return (max(0.0, score.latency_ms - self._plan.limit), -score.quality, score.latency_ms, score.gates.vector())

    def _proposals(self, corrected: Sequence[Gates], drawn: Sequence[Gates]) -> Iterator[Gates]:
        """Candidates for one generation, best idea first; the caller drops what is not new."""
        if not self._asked:
            yield self._plan.best()
            yield from self._first
            yield from drawn
        if self._told:
            yield from corrected
            parents = [score.gates for score in self.best(max(2, self._population // 2))]
            for _ in range(self._population):
                yield self._screened_child(parents)
        # The last resorts: warm draws where children found nothing new, then whatever a small space still holds.
        scale = self._plan.scale
        for attempt in range(self._population):
            yield self._plan.draw(self._rng, scale * (1 + attempt))
        yield from filter(self._is_new, self._reserve)

    def _corrected(self) -> Generator[None, None, list[Gates]]:
        """Plans over what is known now: the best as expected, then the best of damages drawn from what is possible.

        One plan per item. Beside the best that was asked they say what is still to be gained (`expected_gain`).
        """
        if any(score.quality >= 1 for score in self._told_within()):  # the full subnet, which agrees with itself
            self.expected_gain = 0.0
        if not self._told:
            return []
        from edge_runtime.surrogate import LEAST_SCORES, DamageModel  # here, as it needs numpy, and planning does not

        if len(self._told) < LEAST_SCORES:
            return []
        model = DamageModel(self._plan.damage, list(self._told.values()))
        self._screen = model.mean()
        draws = [model.draw(self._rng) for _ in range(self._population)]
        plans: list[Gates] = []
        for damage in (self._screen, *draws):
            plans.append(Plan(self._plan.cost, damage, self._plan.limit).best())
            yield
        self.expected_gain = min(self.expected_gain, self._gain(draws, plans[1:]))
        return plans  # of the draws, children take the places of those that were asked before

    def _gain(self, draws: Sequence[AdditiveCost], plans: Sequence[Gates]) -> float:
        """What ending here is expected to lose, were all that were told ranked without error; in log quality.

        The expected opportunity cost (Chick and Inoue 2001, Operations Research 49), over draws of what is possible and
        whose best may be asked.
        """
        told = [score.gates for score in self._told_within()]
        rows = [row for row in zip(draws, plans, strict=True) if self._plan.damage(row[1]) <= self._most_damage]
        if not told or not rows:
            return math.inf
        return max(0.0, fmean(min(map(damage, told)) - damage(plan) for damage, plan in rows))

    def _told_within(self) -> list[Score]:
        return [score for gates, score in self._told.items() if self._plan.fits(gates)]

    def _screened_child(self, parents: Sequence[Gates]) -> Gates:
        """The least damaging of a few new children within the limit; where none was found, one that is not new."""
        children: list[Gates] = []
        for _ in range(_CHILD_TRIES):
            child = self._repaired(self._mutated(self._crossed(parents)))
            if self._is_new(child):
                children.append(child)
            if len(children) == _SCREENED:
                break
        return min(children or [child], key=self._screen)

    def _crossed(self, parents: Sequence[Gates]) -> Gates:
        """Each value from one of two parents; the better half of a tournament is likelier to be one."""
        ranks = [min(self._rng.choices(range(len(parents)), k=2)) for _ in range(2)]
        first, second = (parents[rank].values for rank in ranks)
        mixed = [a if self._rng.random() < 0.5 else b for a, b in zip(first, second, strict=True)]
        return self._space.gates(mixed)

    def _mutated(self, gates: Gates) -> Gates:
        """About one and a half groups changed to a random other value."""
        groups = self._space.groups
        changed = {self._rng.randrange(len(groups))}
        changed |= {index for index in range(len(groups)) if self._rng.random() < 0.5 / len(groups)}
        values = list(gates.values)
        for index in sorted(changed):
            values[index] = _other(values[index], groups[index].size, self._rng)
        return self._space.gates(values)

    def _repaired(self, gates: Gates) -> Gates:
        """Groups in random order moved to a random cheaper value until the subnet is within the limit."""
        order = list(range(len(self._space.groups)))
        self._rng.shuffle(order)
        for index in order:
            if self._plan.fits(gates):
                break
            other = gates.replace(index, _other(gates.values[index], self._space.groups[index].size, self._rng))
            if self._plan.cost(other) < self._plan.cost(gates):
                gates = other
        return gates


def _other(value: GateValue, size: int, rng: random.Random) -> GateValue:
    """A random other value of a group; a bit is flipped, but the last one that is on stays on."""
    if isinstance(value, int):
        return (value + rng.randrange(1, size)) % size if size > 1 else value
    flipped = rng.randrange(size)
    bits = tuple(bit ^ (index == flipped) for index, bit in enumerate(value))
    return bits if any(bits) else value


def _of(space: GateSpace, gates: Gates) -> Gates:
    if gates.space != space:
        raise UsageError(f"the gates {gates} belong to another gate space")
    return gates
