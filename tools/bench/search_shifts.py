"""How good is the unlabelled search where a device sees a shift? On the images of that shift, by its labels elsewhere.

    python tools/bench/search_shifts.py runway --data DIR --work work/search
    python tools/bench/search_shifts.py tiny --bundle model.nnf --data DIR --work work/search

A draw cuts the test images into halves. The search sees up to 256 images of one half as they come under the shift (see
shifts.py), without labels. The reference, ten times as long, sees all labels of that half, each image as often as it
comes; it is the best there of what it and the search found. The other half, under the same shift, says what both are
worth. `regret_points` is the reference's accuracy there less that of the subnet found, mean over draws with a 95 %
interval; `mean` is that over shifts, `gap_closed` one less the sum of the regrets over the sum of the reference's
advantages over random subnets.

Where a shift leaves few images (`effective_images` are those that judge, as many as equally likely ones would be), the
reference was lucky on the ones that it saw, and falls back on the others: regrets of such shifts are too low.

Latencies are those of one table; that, and the kept answers, are those of search.py where --images and --seed are the
same. Each draw is kept for as long as the code of the searches stays the same. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import numpy.typing as npt
from search_draws import RANDOM_SUBNETS, Setting, code_digest
from search_open import QUICK, Opened, case_arguments, opened
from search_ours import adapted, random_feasible, reference_search
from search_regret import best_on, summary
from search_trial import Terms, Trial
from shifts import Draw, Half, shifts_of, split

from edge_runtime.gates import Gates

FEW, FEW_DRAWS = 80, 2
"""Images and draws of a quick run."""


@dataclass(frozen=True, slots=True)
class Row:
    """One draw: accuracies on the other half under the shift, and how many images there were."""

    reference: float
    found: float
    at_random: float
    full: float
    images: int
    """That the search saw."""

    effective_images: float
    """That judged."""

    gates: str
    """What was found."""


def _arguments() -> argparse.Namespace:
    parser = case_arguments(__doc__.splitlines()[0], images=5000)
    parser.add_argument("--draws", type=common.at_least(2), default=20, help="of each shift")
    return parser.parse_args()


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    setting, most, draws = Setting(seed=arguments.seed), arguments.images, arguments.draws
    if arguments.quick:
        setting, most, draws = replace(setting, plan=QUICK, factor=1), FEW, FEW_DRAWS
    with opened(arguments, most, "tools/bench/search_shifts.py") as case:
        budgets = {f"{f:g}": _budget(case, f, setting, draws) for f in arguments.fractions}
    return {
        "case": arguments.case,
        "bundle": case.bundle.digest,
        "subnets": case.terms.space.size(),
        "test_images": len(case.images.labels),
        "draws": draws,
        "seed": arguments.seed,
        "quick": arguments.quick,
        "latency": {"method": case.table.method, "error": case.table.error},
        "budgets": budgets,
    }


def _budget(case: Opened, fraction: float, setting: Setting, draws: int) -> dict[str, Any]:
    """Figures of each shift under one limit, and over all of them."""
    terms = case.limited(fraction)
    if not terms.plan.feasible:
        return {"reachable": False}
    kept = _Kept(terms, setting, case.folder / f"shifts-{fraction:g}.jsonl")
    weighed = shifts_of(case.images.labels, case.images.conditions)
    rows: dict[str, list[Row]] = {name: [] for name in weighed}
    for draw in range(draws):  # of all shifts in turn: what a stopped run has can be reported with fewer draws
        for name, weigh in weighed.items():
            rows[name].append(kept.row(name, draw, weigh))
    shifts = {name: figures(some) for name, some in rows.items()}
    return {"reachable": True, "limit_ms": round(terms.limit_ms, 4), "shifts": shifts, "mean": overall(rows)}


class _Kept:
    """Makes draws, and keeps them in a file, one line each."""

    def __init__(self, terms: Terms, setting: Setting, path: Path) -> None:
        self._terms, self._setting, self._path = terms, setting, path
        asked = (len(terms.labels), terms.limit_ms, setting.seed, setting.factor, asdict(setting.plan))
        self._about = json.dumps([*asked, code_digest("shifts", "search_shifts")])
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._rows = dict(entry for line in lines if (entry := self._read(line)))

    def _read(self, line: str) -> tuple[tuple[str, int], Row] | None:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # empty, or the run was stopped while it wrote this line
            return None
        return ((entry["shift"], entry["draw"]), Row(**entry["row"])) if entry["about"] == self._about else None

    def row(self, shift: str, draw: int, weigh: Draw) -> Row:
        """One draw of a shift; `weigh` draws the weights of the images."""
        known = self._rows.get((shift, draw))
        if known is None:
            # Of its own for each shift and draw, so that neither depends on what was made before it.
            seed = zlib.crc32(f"{self._setting.seed} {shift} {draw}".encode())
            known = drawn(self._terms, weigh, self._setting, seed)
            line = json.dumps({"about": self._about, "shift": shift, "draw": draw, "row": asdict(known)})
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + line)  # first, as a stopped run may have left half a line
            print(f"{shift}, draw {draw}: {known}", file=sys.stderr, flush=True)
        return known


def drawn(terms: Terms, weigh: Draw, setting: Setting, seed: int) -> Row:
    """Search and reference on one half of the images, judged by the other.

    Args:
        terms: of the case and limit.
        weigh: the shift: draws a weight for every image.
        setting: of the searches.
        seed: of everything that is drawn.
    """
    halves, seen, repeats = (np.random.default_rng((seed, purpose)) for purpose in range(3))
    own, other = split(weigh(halves), halves)
    chosen = own.sample(seen)
    trial = Trial(terms, chosen, seed, setting.plan.population, kept=False)
    adapted(trial, trial.evaluator(len(chosen), labelled=False), setting.plan)
    found = terms.space.parse(trial.found[-1]["gates"])
    best = reference(terms, own, own.repeated(len(own.images), repeats), setting, seed, found)
    shuffled = random_feasible(terms.plan, RANDOM_SUBNETS, random.Random(setting.seed))
    at_random = float(np.mean([accuracy(terms, gates, other) for gates in shuffled]))
    by = [accuracy(terms, gates, other) for gates in (best, found)]
    full = accuracy(terms, terms.space.default, other)
    return Row(*by, at_random, full, len(chosen), round(other.effective, 1), str(found))


def reference(
    terms: Terms, own: Half, often: npt.NDArray[np.int64], setting: Setting, seed: int, found: Gates
) -> Gates:
    """The best of a half by all its labels, weighted as the shift weighs, of what a long search and ours found.

    Args:
        terms: of the case and limit.
        own: the half.
        often: its images, each as often as it comes.
        setting: of the searches.
        seed: of the search.
        found: what ours found.
    """
    trial = Trial(terms, often, seed, width=1, kept=True)
    candidates = reference_search(trial, trial.evaluator(len(often)), setting.plan, setting.factor)
    subnets = list(dict.fromkeys([*candidates, found]))
    costs = np.array([terms.cost(gates) for gates in subnets])
    # `best_on` takes means: shares times the number of images have the weighted accuracy as their mean.
    weighted = np.stack([_right(terms, gates, own) * own.shares * len(own.images) for gates in subnets])
    return subnets[best_on(weighted, costs)]


def _right(terms: Terms, gates: Gates, half: Half) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = terms.kept.classes(gates, half.images) == terms.labels[half.images]
    return found


def accuracy(terms: Terms, gates: Gates, half: Half) -> float:
    """Of a subnet on a half, as the shift weighs."""
    return float(_right(terms, gates, half) @ half.shares)


def figures(rows: list[Row]) -> dict[str, float | None]:
    """Of the draws of one shift: means, the regret's 95 % margin, and the share of the gap that is closed."""
    columns = {name: np.array([getattr(row, name) for row in rows]) for name in Row.__slots__ if name != "gates"}
    found = asdict(summary(columns["reference"], columns["found"], columns["at_random"]))
    means = {name: float(values.mean()) for name, values in columns.items()}
    return {name: common.rounded(value) for name, value in (found | means).items()}


def overall(rows: dict[str, list[Row]]) -> dict[str, float | None]:
    """Over shifts, which weigh the same: mean regret, its 95 % margin, and the share of all gaps that is closed."""
    each = [figures(some) for some in rows.values()]
    regret = float(np.mean([found["regret_points"] for found in each]))
    margin = math.sqrt(sum(found["regret_margin"] ** 2 for found in each)) / len(each)
    gap = float(np.mean([100 * (row.reference - row.at_random) for some in rows.values() for row in some]))
    closed = 1 - regret / gap if gap > 0 else math.nan
    named = {"regret_points": regret, "regret_margin": margin, "gap_closed": closed}
    return {name: common.rounded(value) for name, value in named.items()}


if __name__ == "__main__":
    sys.exit(common.run("search-shifts", _bench, _arguments(), alone=False))
