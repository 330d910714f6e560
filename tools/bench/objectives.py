"""Which objective ranks the subnets of one supernet best where labels are few or none? By the labels it does not see.

    python tools/bench/objectives.py tiny --bundle model.nnf --data DIR --work work/objectives
    python tools/bench/objectives.py fod --bundle tests/data/runway.nnf --data DIR --work work/objectives
    python tools/bench/objectives.py scenes --bundle edge_runtime/assets/demo.nnf

Hundreds of subnets answer all test images once. A draw takes 256 images of one half of them, as a device under a shift
would see them: other frequencies of the classes, or one condition of weather and light. Each objective scores the
subnets on these; their accuracy on the other half, under the same shift, says what each score was worth. Regret@1 is
the accuracy of the best subnet less that of the one with the highest score, of those within 15 % below a limit on the
latency, so that it is not enough to choose a slow one; rank correlations are of the same subnets. Means are over limits
and draws. The last line is one JSON object.
"""

# ruff: noqa: TID251 - a bench may use the builder's data sets; only the runtime must not

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import numpy.typing as npt
from elastify_data import load_images
from objectives_answers import LEVELS, Answers, answers_of
from objectives_kinds import OBJECTIVES, Sample

from builder.fod import CONDITIONS, load_crops
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.quality import Z_95, Values

IMAGES = 256
NEAR = 0.85
"""Least share of a limit that a subnet's latency has, to be compared under it."""

SUBSET = 20
DIRICHLET = (0.01, 0.1, 1.0)

Weights = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator], Weights]


@dataclass(frozen=True, slots=True)
class Case:
    """Labelled answers, and the shifts under which they are looked at: each draws a weight for every image."""

    answers: Answers
    shifts: Mapping[str, Draw]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=sorted(CASES), help="images")
    parser.add_argument("--bundle", required=True, type=Path, help="the elastic model of these images' classes")
    parser.add_argument("--data", type=Path, default=os.environ.get("NNF_DATA"), help="data folder ($NNF_DATA)")
    parser.add_argument("--work", type=Path, default=Path("work/objectives"), help="holds the answers between runs")
    parser.add_argument("--subnets", type=int, default=210)
    parser.add_argument("--draws", type=int, default=20, help="of each shift")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the result to this file too")
    return parser.parse_args()


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.data is None and arguments.set != "scenes":
        raise InputError("this bench needs labelled images", hint="name their folder with --data")
    bundle = Bundle.read(arguments.bundle)
    case = CASES[arguments.set](bundle, arguments)
    rng = np.random.default_rng(arguments.seed)
    rows = {name: _shift(case.answers, draw, arguments.draws, rng) for name, draw in case.shifts.items()}
    return {
        "bundle": bundle.digest,
        "set": arguments.set,
        "subnets": len(case.answers.latency),
        "test_images": len(case.answers.labels),
        "images": IMAGES,
        "draws": arguments.draws,
        "levels": LEVELS,
        "seed": arguments.seed,
        "shifts": rows,
        "mean": _mean(rows),
    }


def _tiny(bundle: Bundle, arguments: argparse.Namespace) -> Case:
    test = load_images(arguments.data, seed=0).test
    answers = answers_of(bundle, test.images, test.labels, arguments.subnets, arguments.work, arguments.seed)
    return Case(answers, _class_shifts(test.labels))


def _class_shifts(labels: npt.NDArray[np.int64]) -> dict[str, Draw]:
    classes = int(labels.max()) + 1

    def dirichlet(alpha: float) -> Draw:
        return lambda rng: rng.dirichlet(np.full(classes, alpha))[labels]

    def subset(rng: np.random.Generator) -> Weights:
        return np.isin(labels, rng.choice(classes, SUBSET, replace=False)).astype(np.float64)

    shifts: dict[str, Draw] = {"none": lambda rng: np.ones(len(labels)), f"{SUBSET} classes": subset}
    return shifts | {f"Dirichlet {alpha:g}": dirichlet(alpha) for alpha in DIRICHLET}


def _fod(bundle: Bundle, arguments: argparse.Namespace) -> Case:
    crops = load_crops(arguments.data)
    names = bundle.manifest.task.class_names
    crops = crops if len(names) == len(crops.class_names) else crops.only_classes(crops.common_classes())
    test = crops.split("test")
    labels = test.labels.astype(np.int64)
    answers = answers_of(bundle, test.images, labels, arguments.subnets, arguments.work, arguments.seed)
    return Case(answers, _condition_shifts(np.array(CONDITIONS)[test.conditions]))


def _scenes(bundle: Bundle, arguments: argparse.Namespace) -> Case:
    from builder.recipes.demo_config import DEMO  # imports torch, which the photographs do not need

    test = DEMO.render("test", workers=len(os.sched_getaffinity(0)))
    labels = test["labels"].astype(np.int64)
    answers = answers_of(bundle, test["images"], labels, arguments.subnets, arguments.work, arguments.seed)
    return Case(answers, _condition_shifts(test["conditions"]))


def _condition_shifts(conditions: npt.NDArray[np.str_]) -> dict[str, Draw]:
    def only(name: str) -> Draw:
        return lambda rng: np.asarray(conditions == name, np.float64)

    shifts: dict[str, Draw] = {"none": lambda rng: np.ones(len(conditions))}
    return shifts | {str(name): only(name) for name in np.unique(conditions)}


def _shift(answers: Answers, draw: Draw, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """For each objective its figures under one shift."""
    found: dict[str, list[Values]] = {name: [] for name in OBJECTIVES}
    for _ in range(draws):
        sample, truth = _drawn(answers, draw(rng), rng)
        groups = list(_groups(answers))
        for name, objective in OBJECTIVES.items():
            rows = [_figures(objective(_only(sample, group)), truth[group]) for group in groups]
            found[name].append(np.mean(rows, axis=0))
    return {name: _summary(np.stack(rows)) for name, rows in found.items()}


def _drawn(answers: Answers, weights: Weights, rng: np.random.Generator) -> tuple[Sample, Values]:
    """A sample of one half of the images, and each subnet's accuracy on the other half, both under `weights`."""
    order = rng.permutation(len(weights))
    own, other = (half[weights[half] > 0] for half in np.array_split(order, 2))
    own, other = (own, other) if len(own) and len(other) else (order, order)
    shares = weights[own] / weights[own].sum()
    enough = np.count_nonzero(shares) >= IMAGES and shares.max() < 1 / IMAGES
    chosen = rng.choice(own, IMAGES, replace=not enough, p=shares)
    right = answers.shares[:, other].argmax(axis=2) == answers.labels[other]
    truth: Values = right @ (weights[other] / weights[other].sum())
    seen = answers.shares[:, chosen].astype(np.float64)
    return Sample(seen, seen[0], answers.labels[chosen], answers.damage), truth


def _only(sample: Sample, subnets: npt.NDArray[np.int64]) -> Sample:
    return replace(sample, shares=sample.shares[subnets], damage=sample.damage[subnets])


def _groups(answers: Answers) -> Iterator[npt.NDArray[np.int64]]:
    """The subnets near each limit from below."""
    for level in LEVELS:
        found = np.flatnonzero((answers.latency <= level * 1.0001) & (answers.latency >= NEAR * level))
        if len(found) > 2:
            yield found


def _figures(scores: Values, truth: Values) -> Values:
    """Regret@1, the share of the gap between a random subnet and the best that is closed, Spearman and Kendall."""
    best, chosen, mean = truth.max(), truth[np.argmax(scores)], truth.mean()
    closed = (chosen - mean) / (best - mean) if best > mean else 1.0
    first, second = (np.sign(values[:, None] - values[None]) for values in (scores, truth))
    pairs = np.sqrt((first**2).sum() * (second**2).sum())
    kendall = (first * second).sum() / pairs if pairs else 0.0
    return np.array([100 * (best - chosen), closed, _correlation(_ranks(scores), _ranks(truth)), kendall])


def _ranks(values: Values) -> Values:
    """Ranks from 0, of equals the mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: Values = (np.cumsum(counts) - (counts + 1) / 2)[place]
    return means


def _correlation(first: Values, second: Values) -> float:
    return float(np.corrcoef(first, second)[0, 1]) if first.std() > 0 and second.std() > 0 else 0.0


def _summary(rows: npt.NDArray[np.float64]) -> dict[str, Any]:
    regret, closed, spearman, kendall = rows.mean(axis=0)
    margin = Z_95 * rows[:, 0].std(ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else float("nan")
    return {
        "regret_points": round(float(regret), 3),
        "regret_margin": round(float(margin), 3),
        "gap_closed": round(float(closed), 4),
        "spearman": round(float(spearman), 4),
        "kendall": round(float(kendall), 4),
    }


def _mean(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Each objective's figures over all shifts."""
    figures = ("regret_points", "gap_closed", "spearman", "kendall")
    return {
        name: {key: round(float(np.mean([row[name][key] for row in rows.values()])), 4) for key in figures}
        for name in OBJECTIVES
    }


CASES = {"tiny": _tiny, "fod": _fod, "scenes": _scenes}

if __name__ == "__main__":
    sys.exit(common.run("objectives", _bench, _arguments(), alone=False))
