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
--rival-draws gives them fewer, --random without a number leaves out the random ones (the reference then does not know
what they found), and once the table is made, two processes may each make one of --fractions.

`prefix_saving` says what percentage of the blocks prefix reuse would save at best: among subnets that are asked for
together, and in whole rounds, among all that run on the same images. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from typing import Any

import common
from search_draws import Draws, Setting
from search_nsga import pymoo_version
from search_open import QUICK, case_arguments, opened
from search_report import report
from search_rivals import Effort


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done."""

    draws: int
    rival_draws: int
    images: int
    setting: Setting


def _arguments() -> argparse.Namespace:
    parser = case_arguments(__doc__.splitlines()[0], images=1000)
    parser.add_argument("--draws", type=common.at_least(1), default=20)
    parser.add_argument(
        "--rival-draws", type=common.at_least(0), help="of AdaptiveNet's search and NSGA-II; as many if left out"
    )
    parser.add_argument(
        "--random",
        type=common.at_least(1),
        nargs="*",
        default=Setting().random,
        help="subnets of the random searches; none: no such",
    )
    return parser.parse_args()


def _scale(arguments: argparse.Namespace) -> Scale:
    rivals = arguments.draws if arguments.rival_draws is None else arguments.rival_draws
    setting = Setting(seed=arguments.seed, random=tuple(arguments.random))
    if not arguments.quick:
        return Scale(arguments.draws, min(rivals, arguments.draws), arguments.images, setting)
    effort = Effort(population=6, generations=2, told=(1, 2))
    few = replace(
        setting, labels=24, unlabelled=32, effort=effort, plan=QUICK, factor=1, random=setting.random and (8,)
    )
    return Scale(2, 1, 80, few)


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    scale = _scale(arguments)
    budgets: dict[str, Any] = {}
    with opened(arguments, scale.images, "tools/bench/search.py") as case:
        for fraction in arguments.fractions:
            limited = case.limited(fraction)
            if not limited.plan.feasible:
                budgets[f"{fraction:g}"] = {"reachable": False}
                continue
            draws = Draws(limited, scale.setting, case.folder / f"found-{fraction:g}.jsonl")
            draws.make(scale.draws, scale.rival_draws)
            budgets[f"{fraction:g}"] = {"reachable": True} | report(limited, draws)
    table, space = case.table, case.terms.space
    return {
        "case": arguments.case,
        "bundle": case.bundle.digest,
        "subnets": space.size(),
        "test_images": len(case.images.labels),
        "labels": scale.setting.labels,
        "unlabelled": scale.setting.unlabelled,
        "draws": scale.draws,
        "rival_draws": scale.rival_draws,
        "random": scale.setting.random,
        "seed": arguments.seed,
        "quick": arguments.quick,
        "pymoo": pymoo_version() or "missing: NSGA-II was left out",
        "latency": {"method": table.method, "error": table.error, "full_ms": table.cost(space.default)},
        "seconds_are": "table latency x images x batched, and the search's own time; not this run's wall-clock",
        "batched": case.terms.batched,
        "images_really_run": case.terms.network.ran,
        "budgets": budgets,
    }


if __name__ == "__main__":
    sys.exit(common.run("search", _bench, _arguments(), alone=False))
