"""How good and how dear is our search beside others? On one bundle, one latency table, one evaluator.

    python tools/bench/search.py runway --data DIR --work work/search
    python tools/bench/search.py tiny --bundle model.nnf --data DIR --work work/search
    python tools/bench/search.py scenes --work work/search
    python tools/bench/search.py scenes --quick

A draw cuts the test images into halves. Every search sees the first images of one half, with labels or without; the
reference, ten times as long, sees all labels of that half, and is the best on it of what it and the searches found (of
a small space: of all subnets). The other half says what each is worth. `regret_points` is the reference's accuracy
there less that of the subnet found, mean over draws with a 95 % interval; `gap_closed` is one less the share that the
regret has in the reference's advantage over random subnets near the limit.

Blocks are counted as in search_blocks.py, for every search alike and as if nothing had been known before: `blocks`
where subnets run one by one, `shared_blocks` where those that are asked for together share their prefixes. To afford
all draws, classes that subnets answered are kept in the work folder and used again across draws and searches; so
seconds are no wall-clock of this run. `evaluation_s` is the sum of what evaluations cost by the latency table times
what an image of a batch takes, measured once; `own_s` is the search's own time. Both together are `seconds`.

`equal_regret` says what a rival pays until its mean regret is no higher than ours (`ratio` is a lower bound where it
never is: not `reached`); `plain` counts as ours does, `shared` lets the rival share prefixes. `behind_ours` is a paired
difference with its 95 % margin, for where two regrets cannot be told apart.

What was found is kept too, for as long as the code of the searches stays the same: a stopped run goes on. Draws are
made one after the other, each for all searches. AdaptiveNet's search and NSGA-II take nearly all of the time;
--rival-draws gives them fewer, and once the table is made, two processes may each make one of --fractions.

`prefix_saving` says what percentage of the blocks prefix reuse would save at best: among subnets that are asked for
together, and in whole rounds, among all that run on the same images. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
from search_answers import KeptClasses, Network
from search_cases import CASES
from search_draws import Draws, Setting
from search_nsga import pymoo_version
from search_report import report
from search_rivals import Effort
from search_table import latency_table
from search_trial import Terms

from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.additive import AdditiveCost
from edge_runtime.backends import SessionOptions, open_session
from edge_runtime.bundle import Bundle
from edge_runtime.measure import machine_lock
from edge_runtime.objectives import Budget

FRACTIONS = (0.6, 0.8)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done."""

    draws: int
    rival_draws: int
    images: int
    setting: Setting


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--bundle", type=Path, help="the elastic model, of the case's classes; needed by tiny")
    parser.add_argument("--data", type=Path, default=os.environ.get("NNF_DATA"), help="data folder ($NNF_DATA)")
    parser.add_argument("--work", type=Path, default=Path("work/search"), help="holds what is known between runs")
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS, help="of the full subnet's latency")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--rival-draws", type=int, help="of AdaptiveNet's search and NSGA-II; as many if left out")
    parser.add_argument("--images", type=int, default=1000, help="test images at most; two halves of a draw")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="try the plumbing in a minute; the figures mean nothing")
    parser.add_argument("--json", help="write the result to this file too")
    return parser.parse_args()


def _scale(arguments: argparse.Namespace) -> Scale:
    rivals = arguments.draws if arguments.rival_draws is None else arguments.rival_draws
    setting = Setting(seed=arguments.seed)
    if not arguments.quick:
        return Scale(arguments.draws, min(rivals, arguments.draws), arguments.images, setting)
    effort = Effort(population=6, generations=2, told=(1, 2))
    plan = AdaptPlan(Budget(), subsets=(8, 16), population=4, generations=2, finalists=1)
    few = replace(setting, labels=24, unlabelled=32, effort=effort, plan=plan, factor=1, random=(8,))
    return Scale(2, 1, 80, few)


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    case, scale = CASES[arguments.case], _scale(arguments)
    bundle, options = Bundle.read(case.bundle_or(arguments.bundle)), SessionOptions(threads=arguments.threads)
    images, labels = case.images(bundle, arguments.data, scale.images, arguments.seed)
    session = open_session(bundle, options)
    network = Network(session, images, bundle.manifest.preprocessing)
    # A table that was made in haste must not be that of a real run.
    folder = arguments.work / f"{'quick-' * arguments.quick}{arguments.case}-{bundle.digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    alone = nullcontext() if arguments.quick else machine_lock("tools/bench/search.py")
    table, batched = latency_table(folder / "table.json", bundle, session, options, alone)
    kept = KeptClasses(network, folder / f"answers-{len(images)}-{arguments.seed}.sqlite")
    prior = AdditiveCost.damage(table.cost.space, bundle.manifest.prior)
    terms = Terms(table.cost, prior, 0.0, batched, network, kept, labels, len(bundle.manifest.task.class_names))
    budgets: dict[str, Any] = {}
    for fraction in arguments.fractions:
        limited = replace(terms, limit_ms=fraction * table.cost(table.cost.space.default))
        if not limited.plan.feasible:
            budgets[f"{fraction:g}"] = {"reachable": False}
            continue
        draws = Draws(limited, scale.setting, folder / f"found-{fraction:g}.jsonl")
        draws.make(scale.draws, scale.rival_draws)
        budgets[f"{fraction:g}"] = {"reachable": True} | report(limited, draws)
    session.close()
    kept.close()
    return {
        "case": arguments.case,
        "bundle": bundle.digest,
        "subnets": table.cost.space.size(),
        "test_images": len(images),
        "labels": scale.setting.labels,
        "unlabelled": scale.setting.unlabelled,
        "draws": scale.draws,
        "rival_draws": scale.rival_draws,
        "seed": arguments.seed,
        "quick": arguments.quick,
        "pymoo": pymoo_version() or "missing: NSGA-II was left out",
        "latency": {"method": table.method, "error": table.error, "full_ms": table.cost(table.cost.space.default)},
        "seconds_are": "table latency x images x batched, and the search's own time; not this run's wall-clock",
        "batched": batched,
        "images_really_run": network.ran,
        "budgets": budgets,
    }


if __name__ == "__main__":
    sys.exit(common.run("search", _bench, _arguments(), alone=False))
