"""Which objective ranks the subnets of one supernet best where labels are few or none? By the labels it does not see.

    python tools/bench/objectives.py tiny --bundle model.nnf --data DIR --work work/objectives
    python tools/bench/objectives.py runway --data DIR --work work/objectives
    python tools/bench/objectives.py scenes --work work/objectives

About two hundred subnets answer all test images once. A draw takes up to 256 different images of one half of them, as a
device under a shift would see them: other frequencies of the classes, or one condition of weather and light (`images`
says how many there were). Each objective scores the subnets on these; their accuracy on the other half, under the same
shift, says what each score was worth. Regret@1 is the accuracy of the best subnet less that of the one with the highest
score (of equals the mean), of those within 15 % below a limit on the latency, so that it is not enough to choose a slow
one; rank correlations are of the same subnets. Means are over limits and draws; their margin is that of 95 % over
draws, which are other halves of the same images. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import numpy.typing as npt
from objectives_answers import LEVELS, Answers, answers_of
from objectives_kinds import OBJECTIVES, Sample
from search_cases import CASES
from shifts import Draw, Weights, shifts_of, split

from edge_runtime.bundle import Bundle
from edge_runtime.quality import Z_95, Values

NEAR = 0.85
"""Least share of a limit that a subnet's latency has, to be compared under it."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--bundle", type=Path, help="the elastic model, of the case's classes; needed by tiny")
    parser.add_argument("--data", type=Path, default=os.environ.get("NNF_DATA"), help="data folder ($NNF_DATA)")
    parser.add_argument("--work", type=Path, default=Path("work/objectives"), help="holds the answers between runs")
    parser.add_argument("--subnets", type=int, default=210)
    parser.add_argument("--draws", type=int, default=20, help="of each shift")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the result to this file too")
    return parser.parse_args()


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    case = CASES[arguments.case]
    bundle = Bundle.read(case.bundle_or(arguments.bundle))
    loaded = case.load(bundle, arguments.data)
    answers = answers_of(bundle, loaded.frames, loaded.labels, arguments.subnets, arguments.work, arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    found = {
        name: _shift(answers, draw, arguments.draws, rng)
        for name, draw in shifts_of(loaded.labels, loaded.conditions).items()
    }
    rows = {name: figures for name, (figures, _) in found.items()}
    return {
        "bundle": bundle.digest,
        "case": arguments.case,
        "subnets": len(answers.latency),
        "test_images": len(answers.labels),
        "images": {name: images for name, (_, images) in found.items()},
        "draws": arguments.draws,
        "levels": LEVELS,
        "seed": arguments.seed,
        "shifts": rows,
        "mean": _mean(rows),
    }


def _shift(
    answers: Answers, draw: Draw, draws: int, rng: np.random.Generator
) -> tuple[dict[str, dict[str, float]], float]:
    """For each objective its figures under one shift, and how many images it saw."""
    found: dict[str, list[Values]] = {name: [] for name in OBJECTIVES}
    images = []
    for _ in range(draws):
        sample, truth = _drawn(answers, draw(rng), rng)
        images.append(len(sample.labels))
        groups = list(_groups(answers))
        for name, objective in OBJECTIVES.items():
            rows = [_figures(objective(_only(sample, group)), truth[group]) for group in groups]
            found[name].append(np.mean(rows, axis=0))
    return {name: _summary(np.stack(rows)) for name, rows in found.items()}, float(np.mean(images))


def _drawn(answers: Answers, weights: Weights, rng: np.random.Generator) -> tuple[Sample, Values]:
    """A sample of one half of the images, and each subnet's accuracy on the other half, both under `weights`."""
    own, other = split(weights, rng)
    chosen = own.sample(rng)
    right = answers.shares[:, other.images].argmax(axis=2) == answers.labels[other.images]
    truth: Values = right @ other.shares
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
    best, chosen, mean = truth.max(), truth[scores == scores.max()].mean(), truth.mean()
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


def _summary(rows: npt.NDArray[np.float64]) -> dict[str, float]:
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


if __name__ == "__main__":
    sys.exit(common.run("objectives", _bench, _arguments(), alone=False))
