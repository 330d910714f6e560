"""How good is the unlabelled search where a device sees a shift? On the images of that shift, by its labels elsewhere.

    python tools/bench/search_shifts.py runway --data DIR --work work/search
    python tools/bench/search_shifts.py tiny --bundle model.nnf --data DIR --work work/search

A draw cuts the test images into halves. The search sees up to 256 different images of one half as they come under the
shift (see shifts.py), without labels. The reference, ten times as long, sees all labels of that half, each image as
often as it comes; it is the best there of what it and the search found. The other half, under the same shift, says what
both are worth: `regret_points` is the mean over draws with a 95 % interval, `mean` that over shifts. A figure of few
images is a noisy one, whichever way: `images` says how many the search saw, `other_images` how many judged it.

Latencies are those of one table, as in search.py, whose kept answers are used too. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import common
import numpy as np
from search_draws import RANDOM_SUBNETS, Setting
from search_open import Opened, case_arguments, opened
from search_ours import adapted, random_feasible, reference_search
from search_regret import best_on, summary
from search_trial import Terms, Trial
from shifts import Draw, Half, shifts_of, split

from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.gates import Gates
from edge_runtime.objectives import Budget

QUICK = AdaptPlan(Budget(), subsets=(8, 16), population=4, generations=2, finalists=1)

Found = dict[str, float]


def _arguments() -> argparse.Namespace:
    parser = case_arguments(__doc__.splitlines()[0], images=2000)
    parser.add_argument("--draws", type=int, default=10, help="of each shift")
    return parser.parse_args()


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    setting = Setting(seed=arguments.seed)
    if arguments.quick:
        setting = replace(setting, plan=QUICK, factor=1)
    with opened(arguments, 80 if arguments.quick else arguments.images, "tools/bench/search_shifts.py") as case:
        budgets = {f"{f:g}": _budget(case, case.limited(f), setting, arguments.draws) for f in arguments.fractions}
    return {
        "case": arguments.case,
        "bundle": case.bundle.digest,
        "subnets": case.terms.space.size(),
        "test_images": len(case.images.labels),
        "draws": arguments.draws,
        "seed": arguments.seed,
        "quick": arguments.quick,
        "latency": {"method": case.table.method, "error": case.table.error},
        "budgets": budgets,
    }


def _budget(case: Opened, terms: Terms, setting: Setting, draws: int) -> dict[str, Any]:
    """Figures of each shift under one limit, and their mean over shifts."""
    if not terms.plan.feasible:
        return {"reachable": False}
    shifts = {}
    for name, draw in shifts_of(case.images.labels, case.images.conditions).items():
        shifts[name] = _shift(terms, draw, setting, draws)
        print(json.dumps({name: shifts[name]}), file=sys.stderr, flush=True)
    mean = {key: _mean(shifts.values(), key) for key in ("regret_points", "gap_closed")}
    return {"reachable": True, "limit_ms": round(terms.limit_ms, 4), "shifts": shifts, "mean": mean}


def _mean(shifts: Sequence[Mapping[str, float]], key: str) -> float:
    return round(float(np.mean([figures[key] for figures in shifts])), 4)


def _shift(terms: Terms, draw: Draw, setting: Setting, draws: int) -> Found:
    """Regret, margin and closed gap over the draws of one shift."""
    rng = np.random.default_rng(setting.seed)
    rows = [_drawn(terms, *split(draw(rng), rng), rng, setting, setting.seed + number) for number in range(draws)]
    reference, found, at_random, full, seen, other = np.array(rows).T
    figures = asdict(summary(reference, found, at_random))
    figures |= {"accuracy": found.mean(), "reference_accuracy": reference.mean(), "random_accuracy": at_random.mean()}
    figures |= {"full_accuracy": full.mean(), "images": seen.mean(), "other_images": other.mean()}
    return {key: round(float(value), 4) for key, value in figures.items()}


def _drawn(
    terms: Terms, own: Half, other: Half, rng: np.random.Generator, setting: Setting, seed: int
) -> tuple[float, ...]:
    """Accuracies on the other half: reference, found, random, full; and how many images were seen and judged by."""
    chosen = own.sample(rng)
    trial = Trial(terms, chosen, seed, setting.plan.population, kept=False)
    adapted(trial, trial.evaluator(len(chosen), labelled=False), setting.plan)
    found = terms.space.parse(trial.found[-1]["gates"])
    best = _reference(terms, own, rng, setting, seed, found)
    shuffled = random_feasible(terms.plan, RANDOM_SUBNETS, random.Random(setting.seed))
    at_random = float(np.mean([_accuracy(terms, gates, other) for gates in shuffled]))
    accuracies = [_accuracy(terms, gates, other) for gates in (best, found, terms.space.default)]
    return accuracies[0], accuracies[1], at_random, accuracies[2], len(chosen), len(other.images)


def _reference(terms: Terms, own: Half, rng: np.random.Generator, setting: Setting, seed: int, found: Gates) -> Gates:
    """The best on all labels of a half, each image as often as it comes under the shift."""
    often = rng.choice(own.images, len(own.images), p=own.shares)
    trial = Trial(terms, often, seed, width=1, kept=True)
    candidates = reference_search(trial, trial.evaluator(len(often)), setting.plan, setting.factor)
    subnets = list(dict.fromkeys([*candidates, found]))
    costs = np.array([terms.cost(gates) for gates in subnets])
    # `best_on` takes means: shares times the number of images have the weighted accuracy as their mean.
    weighted = np.stack([_right(terms, gates, own) * own.shares * len(own.images) for gates in subnets])
    return subnets[best_on(weighted, costs)]


def _right(terms: Terms, gates: Gates, half: Half) -> Any:
    return terms.kept.classes(gates, half.images) == terms.labels[half.images]


def _accuracy(terms: Terms, gates: Gates, half: Half) -> float:
    return float(_right(terms, gates, half) @ half.shares)


if __name__ == "__main__":
    sys.exit(common.run("search-shifts", _bench, _arguments(), alone=False))
