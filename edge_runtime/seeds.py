"""Subnets to begin with: near a latency limit by the prior, such that every alternative appears, or at random.

Sees no clock, no file and no device.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable

from edge_runtime.additive import AdditiveCost, Plan, infeasible
from edge_runtime.checks import positive, whole
from edge_runtime.errors import UsageError
from edge_runtime.gates import Gates, GateSpace, GateValue
from edge_runtime.slices import finished

__all__ = ["covering_vectors", "near_budget", "near_budget_seeds", "plan_within", "random_gates", "reserve"]

SMALL_SPACE = 4096
"""Up to so many subnets a space is enumerated, so that a long enough search has seen all of it."""

_DRAWS_PER_SEED = 8

_DRAWS_PER_SLICE = 8
"""A draw takes a fraction of a millisecond."""


def near_budget_seeds(
    space: GateSpace,
    predict_ms: AdditiveCost,
    prior: AdditiveCost | None,
    limit_ms: float,
    count: int,
    seed: int,
) -> list[Gates]:
    """Distinct subnets predicted to be within a limit, by prior damage, least first.

    The first is the best there is (see `Plan`), the others are drawn around it. As faster alternatives damage more,
    they lie just below the limit wherever the limit binds.

    Args:
        space: What is searched.
        predict_ms: Predicted p95 of a subnet, milliseconds.
        prior: Expected damage of a subnet, lower is better; None: what is predicted slower is expected to be better.
        limit_ms: Upper limit of the predicted latency, milliseconds, above 0.
        count: How many at most; a small space may hold fewer.
        seed: Of the random generator.

    Raises:
        BudgetError: Not even the fastest subnet is predicted to be within the limit.
    """
    plan = plan_within(space, predict_ms, prior, limit_ms)
    found = dict.fromkeys(finished(near_budget(plan, whole("count", count), random.Random(whole("seed", seed)))))
    for gates in reserve(plan):
        if len(found) >= count:
            break
        found.setdefault(gates)
    return list(found)[:count]


def covering_vectors(space: GateSpace, *, but: Callable[[str], bool] | None = None) -> list[Gates]:
    """Few vectors in which every value of every choice appears; other groups stay at their default.

    Vector j prefers alternative (i + j) mod n in group i (a Latin square), so that an alternative meets changing
    neighbours; a merged alternative and the units that it replaces take turns.

    Args:
        space: What is covered.
        but: Whether alternatives of a label are left out; the original never is.
    """
    covered = [
        [a for a, label in enumerate(group.labels) if not a or but is None or not but(label)] for group in space.groups
    ]
    missing = {(i, a) for i, group in enumerate(space.groups) if group.kind == "choice" for a in covered[i]}
    vectors: list[Gates] = []
    while missing or not vectors:
        values: list[GateValue] = []
        while len(values) < len(space.groups):
            index, group = len(values), space.groups[len(values)]
            if group.kind != "choice":
                values.append(group.default)
                continue
            own = covered[index]
            turn = [own[(index + len(vectors) + step) % len(own)] for step in range(len(own))]
            value = next((v for v in turn if (index, v) in missing), turn[0])
            missing.discard((index, value))
            values += [value, *((0,) * (group.spans[value] - 1))]
        vectors.append(space.gates(values))
    return vectors


def random_gates(space: GateSpace, rng: random.Random) -> Gates:
    """Every choice uniform; of other groups at least one bit on."""
    values: list[GateValue] = []
    for group in space.groups:
        if group.kind == "choice":
            values.append(rng.randrange(group.size))
        else:
            bits = [rng.randrange(2) for _ in range(group.size)]
            bits[rng.randrange(group.size)] = 1
            values.append(tuple(bits))
    return space.gates(values)


def plan_within(space: GateSpace, predict_ms: AdditiveCost, prior: AdditiveCost | None, limit_ms: float) -> Plan:
    """The plan of one limit; raises as `near_budget_seeds` does."""
    if predict_ms.space != space:
        raise UsageError("the predicted latency belongs to another gate space")
    plan = Plan(predict_ms, predict_ms.negative() if prior is None else prior, positive("the latency limit", limit_ms))
    if not plan.feasible:
        raise infeasible(predict_ms, limit_ms)
    return plan


def near_budget(plan: Plan, count: int, rng: random.Random) -> Generator[None, None, list[Gates]]:
    """Up to `count` distinct draws, from cold to warm, by damage; a few draws per item."""
    found = {plan.best(): None}
    tries, scale = _DRAWS_PER_SEED * count, plan.scale
    for attempt in range(tries):
        if len(found) >= 4 * count:
            break
        found.setdefault(plan.draw(rng, scale * (0.05 + attempt / tries)))
        if attempt % _DRAWS_PER_SLICE == _DRAWS_PER_SLICE - 1:
            yield
    return _ranked(plan, found)[:count]


def reserve(plan: Plan) -> list[Gates]:
    """All subnets of a small space within the limit by damage; nothing for a large one."""
    if plan.space.size() > SMALL_SPACE:
        return []
    return _ranked(plan, (gates for gates in plan.space.enumerate() if plan.fits(gates)))


def _ranked(plan: Plan, subnets: Iterable[Gates]) -> list[Gates]:
    return sorted(subnets, key=lambda gates: (plan.damage(gates), plan.cost(gates), gates.vector()))
