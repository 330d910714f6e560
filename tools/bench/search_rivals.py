"""AdaptiveNet's evolutionary search (Wen et al., MobiCom 2023, arXiv 2303.07129), in our words and without its bugs.

The first population is of merge patterns: original blocks and merged ones only, whose latency is within a tenth of
0.9 times that of the full subnet. The best quarter are the parents; half of a generation are mutated ones, every
decision with a chance of a tenth, after which one other decision is moved to bring the latency back to the parent's;
the others are crossed. Nothing is evaluated twice. Fitness is the accuracy within the limit, and above it
``accuracy / 100 - latency / limit``. Two of its faults are not repeated: that the latency was never brought back after
a speed-up, and that the last alternative looked at was taken for the nearest.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from search_trial import Trial

from edge_runtime.additive import AdditiveCost, fastest
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import GateGroup, Gates, GateSpace, GateValue
from edge_runtime.seeds import random_gates

__all__ = ["Effort", "adaptivenet", "compensated", "first_population", "fitness", "merge_patterns", "mutated"]

NEAR, WITHIN = 0.9, 0.1
"""Latency of the first population as a share of the full subnet's, and its largest relative distance from that."""

PARENTS, MUTATED, CHANCE = 0.25, 0.5, 0.1

TRIES = 50
"""Attempts at a child that was not evaluated yet, for each place in a generation."""

MOST_PATTERNS = 200_000
"""Merge patterns that are enumerated at most; of more so many random ones are taken."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long an evolution goes on, here and in the other rivals."""

    population: int = 100
    generations: int = 20
    """With the first population."""

    told: tuple[int, ...] = (1, 2, 5, 10, 20)
    """After which generations the best so far is told."""


def adaptivenet(trial: Trial, evaluator: Evaluator, effort: Effort) -> None:
    """Its search on all images of the evaluator."""
    terms, rng = trial.terms, random.Random(trial.seed)
    cost, limit = terms.cost, terms.limit_ms
    worth: dict[Gates, float] = {}
    fresh = first_population(cost, effort.population, rng)
    for generation in range(1, effort.generations + 1):
        for gates in fresh:
            accuracy = evaluator.score(gates, cost(gates)).quality
            worth[gates] = fitness(accuracy, cost(gates), limit)
        if generation in effort.told:
            inside = [gates for gates in worth if cost(gates) <= limit]
            trial.tell(max(inside, key=lambda gates: (worth[gates], -cost(gates)), default=fastest(cost)))
        fresh = _children(worth, cost, effort.population, rng)


def fitness(accuracy: float, latency_ms: float, limit_ms: float) -> float:
    """Higher is better; of subnets above the limit the faster ones."""
    return accuracy if latency_ms <= limit_ms else accuracy / 100 - latency_ms / limit_ms


def first_population(cost: AdditiveCost, count: int, rng: random.Random) -> list[Gates]:
    """Merge patterns near 0.9 of the full latency; where there are too few, mutated ones fill the places."""
    aim_ms = NEAR * cost(cost.space.default)
    found = [gates for gates in merge_patterns(cost.space, rng) if abs(cost(gates) - aim_ms) <= WITHIN * aim_ms]
    rng.shuffle(found)
    chosen = dict.fromkeys(found[:count] or [cost.space.default])
    starts = list(chosen)
    for _ in range(TRIES * count):
        if len(chosen) == count:
            break
        chosen.setdefault(compensated(mutated(rng.choice(starts), rng), cost, aim_ms, rng))
    return list(chosen)


def merge_patterns(space: GateSpace, rng: random.Random) -> list[Gates]:
    """All subnets of original blocks and merged ones, in random order where there are too many to list."""
    kinds = [_merging(group) for group in space.groups]
    smaller = GateSpace(tuple(group for group, _ in kinds))
    if smaller.size() <= MOST_PATTERNS:
        patterns: Iterator[Gates] = smaller.enumerate()
    else:
        patterns = (random_gates(smaller, rng) for _ in range(MOST_PATTERNS))
    found = dict.fromkeys(space.gates(_renamed(gates, [numbers for _, numbers in kinds])) for gates in patterns)
    return list(found)


def _merging(group: GateGroup) -> tuple[GateGroup, tuple[int, ...]]:
    """A group with the original and the merged alternatives only, and their numbers in the whole group."""
    if group.kind != "choice":
        return GateGroup(group.name, "choice", group.labels[:1]), (0,)
    numbers = tuple(index for index, span in enumerate(group.spans) if index == 0 or span > 1)
    labels, spans = ([row[index] for index in numbers] for row in (group.labels, group.spans))
    return GateGroup(group.name, "choice", tuple(labels), tuple(spans)), numbers


def _renamed(gates: Gates, numbers: Sequence[tuple[int, ...]]) -> list[GateValue]:
    return [kept[value] for kept, value in zip(numbers, gates.values, strict=True) if isinstance(value, int)]


def mutated(gates: Gates, rng: random.Random) -> Gates:
    """Every decision drawn anew with a chance of a tenth, at least one of them."""
    groups = gates.space.groups
    changed = [index for index in range(len(groups)) if rng.random() < CHANCE] or [rng.randrange(len(groups))]
    other = random_gates(gates.space, rng).values
    return gates.space.gates([other[i] if i in changed else value for i, value in enumerate(gates.values)])


def compensated(gates: Gates, cost: AdditiveCost, aim_ms: float, rng: random.Random) -> Gates:
    """One random decision moved to the alternative that brings the latency nearest to an aim."""
    index = rng.randrange(len(gates.space.groups))
    group = gates.space.groups[index]
    if group.kind != "choice":
        return gates
    options = [gates, *(gates.replace(index, value) for value in range(group.size))]
    return min(options, key=lambda option: abs(cost(option) - aim_ms))


def _children(worth: dict[Gates, float], cost: AdditiveCost, count: int, rng: random.Random) -> list[Gates]:
    """The next generation: new subnets, half of them mutated parents and half crossed ones."""
    parents = sorted(worth, key=lambda gates: -worth[gates])[: max(2, int(PARENTS * count))]
    fresh: dict[Gates, None] = {}
    for attempt in range(TRIES * count):
        if len(fresh) == count:
            break
        parent = rng.choice(parents)
        if len(fresh) < MUTATED * count or attempt > TRIES * count // 2:
            child = compensated(mutated(parent, rng), cost, cost(parent), rng)
        else:
            child = _crossed(parent, rng.choice(parents), rng)
        if child not in worth:
            fresh.setdefault(child)
    return list(fresh)


def _crossed(first: Gates, second: Gates, rng: random.Random) -> Gates:
    return first.space.gates([rng.choice(pair) for pair in zip(first.values, second.values, strict=True)])
