"""NSGA-II as pymoo has it: accuracy and latency at once, within the limit. pymoo is needed by nothing else."""

from __future__ import annotations

import random
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
from search_rivals import Effort
from search_trial import Trial

from edge_runtime.additive import fastest
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import Gates, GateSpace
from edge_runtime.seeds import random_gates

__all__ = ["gates_of", "nsga", "pymoo_version"]


def pymoo_version() -> str | None:
    """The version that is installed; None where it is missing."""
    try:
        return metadata.version("pymoo")
    except metadata.PackageNotFoundError:
        return None


def gates_of(space: GateSpace, numbers: npt.NDArray[np.int64]) -> Gates:
    """The subnet of one flat vector of `space.width` numbers; a group without a bit has its first one on."""
    flat, start = [int(number) for number in numbers], 0
    for group in space.groups:
        if group.kind != "choice" and not any(flat[start : start + group.width]):
            flat[start] = 1
        start += group.width
    return space.from_vector(flat)


def nsga(trial: Trial, evaluator: Evaluator, effort: Effort) -> None:
    """Ask and tell; what is above the limit is told its excess and never evaluated."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair

    terms, space = trial.terms, trial.terms.space
    sizes = [bound for group in space.groups for bound in _bounds(group.kind, group.size)]
    problem = Problem(n_var=len(sizes), n_obj=2, n_ieq_constr=1, xl=0, xu=np.array(sizes), vtype=int)
    rng = random.Random(trial.seed)
    first = np.array([random_gates(space, rng).vector() for _ in range(effort.population)])
    rounding = RoundingRepair()
    algorithm = NSGA2(
        pop_size=effort.population,
        sampling=first,
        crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=rounding),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=rounding),
        eliminate_duplicates=True,
    )
    algorithm.setup(problem, termination=("n_gen", effort.generations), seed=trial.seed, verbose=False)
    accuracy: dict[Gates, float] = {}
    for generation in range(1, effort.generations + 1):
        if not algorithm.has_next():
            break
        asked = algorithm.ask()
        _evaluate(problem, asked, trial, evaluator, accuracy)
        algorithm.tell(infills=asked)
        if generation in effort.told:
            trial.tell(max(accuracy, key=lambda g: (accuracy[g], -terms.cost(g)), default=fastest(terms.cost)))


def _bounds(kind: str, size: int) -> list[int]:
    return [size - 1] if kind == "choice" else [1] * size


def _evaluate(problem: Any, asked: Any, trial: Trial, evaluator: Evaluator, accuracy: dict[Gates, float]) -> None:
    """Fill in the objectives and the excess over the limit, a share."""
    from pymoo.core.evaluator import Evaluator as Filler
    from pymoo.problems.static import StaticProblem

    cost, limit_ms = trial.terms.cost, trial.terms.limit_ms
    subnets = [gates_of(trial.terms.space, row) for row in asked.get("X")]
    for gates in subnets:
        if cost(gates) <= limit_ms and gates not in accuracy:
            accuracy[gates] = evaluator.score(gates, cost(gates)).quality
    errors = np.array([[1 - accuracy.get(gates, 0.0), cost(gates)] for gates in subnets])
    excess = np.array([[cost(gates) / limit_ms - 1] for gates in subnets])
    Filler().eval(StaticProblem(problem, F=errors, G=excess), asked)
