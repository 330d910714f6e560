"""What an arm is worth: the best subnet at each share of the oracle's latency, found by one and the same search.

A search makes the same number of labelled evaluations for every arm, on a split of its own. It plans with the runtime's
latency model; before it begins the limit is corrected by measuring a few subnets near it, and at its end the finalists
are timed beside the oracle's static export. The first within the share is timed again, as of many finalists those are
preferred that were timed too fast; only where the second time is within the share as well is it tested. Where none is,
the limit is corrected by the finalists, and the search repeated. Each point is kept when it is done.
"""

# ruff: noqa: TID251 - a bench may use the builder; only the runtime must not

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from elastify_arms import BUNDLE, PLAIN, Arm
from elastify_data import TinyImages
from elastify_oracle import GRAPH
from elastify_pace import alone
from elastify_points import is_kept, keep, key_of
from elastify_tested import ALL_THREADS, BATCH, ONE_THREAD, network_point, rights_of

from builder.runlog import RunLog
from edge_runtime.additive import AdditiveCost
from edge_runtime.backends import Session, open_session, open_static, runtime_versions
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BudgetError
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import Gates
from edge_runtime.measure import Candidate, calibrate, measure_candidates, random_inputs
from edge_runtime.model.compile import open_quickest
from edge_runtime.objectives import Score
from edge_runtime.quality import Values, shrunken
from edge_runtime.search import EvolutionSearch
from edge_runtime.seeds import near_budget_seeds
from edge_runtime.state import StateDir

__all__ = ["FRACTIONS", "Effort", "score_arm"]

FRACTIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
CORRECTIONS, CLOSE = 3, 0.98
TIMED_SEEDS = 5
"""Subnets near a limit whose median ratio corrects it: one alone is off by a few percent."""
FINALISTS, SEARCHES, LOWER = 6, 4, 0.99
"""Subnets of a search that are timed, searches until one of them is within the share, and by how much the limit of the
next one is lower at least."""
CONFIRMING = 3
"""Times as many runs for the one that is chosen."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is spent on each point."""

    population: int = 14
    generations: int = 5
    runs: int = 200
    """Timed runs of each finalist."""


def score_arm(
    arm: Arm,
    images: TinyImages,
    work: Path,
    fractions: Sequence[float],
    effort: Effort,
    seed: int,
    log: RunLog,
    *,
    further: Sequence[float] = (),
) -> None:
    """Make those points of one trained arm that its folder lacks.

    Args:
        arm: trained in `work`.
        images: the splits.
        work: the work folder.
        fractions: shares of the oracle's latency; a network of its own has one point, its own.
        effort: of the search and the timing.
        seed: of the search.
        log: where each point is written.
        further: shares at which this arm alone is searched; what is found there serves no common share.
    """
    folder = work / arm.folder
    apart = [share for share in further if key_of(share) not in map(key_of, fractions)]
    wanted = (*fractions, *apart) if arm.fraction is None else (arm.fraction,)
    missing = [fraction for fraction in wanted if not is_kept(folder, fraction)]
    if missing:
        _score_missing(arm, images, work, missing, effort, seed, log, apart)


def _score_missing(
    arm: Arm,
    images: TinyImages,
    work: Path,
    missing: Sequence[float],
    effort: Effort,
    seed: int,
    log: RunLog,
    further: Sequence[float],
) -> None:
    folder, oracle = work / arm.folder, open_static((work / GRAPH).read_bytes(), ONE_THREAD)
    if arm.fraction is not None:
        keep(
            folder,
            arm.fraction,
            *network_point((folder / PLAIN).read_bytes(), folder.name, oracle, images, effort.runs),
        )
        return
    scorer = _Scorer(folder, oracle, images, effort, seed)
    for fraction in missing:
        with log.step(f"{arm.folder}.score") as said:
            point, right = scorer.point(fraction)
            point |= {"further": fraction in further}
            keep(folder, fraction, point, right)
            said |= {key: point.get(key) for key in ("fraction", "ratio", "accuracy", "gates", "reason")}


class _Scorer:
    """The sessions of one bundle, its latency model, and what its subnets were found to be worth."""

    def __init__(self, folder: Path, oracle: Session, images: TinyImages, effort: Effort, seed: int) -> None:
        self._bundle = Bundle.read(folder / BUNDLE)
        self._space = self._bundle.manifest.space
        self._damage = AdditiveCost.damage(self._space, self._bundle.manifest.prior)
        self._oracle, self._images, self._effort, self._seed = oracle, images, effort, seed
        self._what = f"tools/bench/elastify.py: {folder.name}"
        state = StateDir.open(folder / "state")
        self._timed, self._form = open_quickest(self._bundle, ONE_THREAD, state, runtime_versions())
        self._plain = open_session(self._bundle, ALL_THREADS)
        with alone(self._what), state.scratch() as scratch:
            self._model = calibrate(self._bundle, self._timed, ONE_THREAD, seed=seed, scratch=scratch)
            self._full_ratio = self._ratio(self._space.default)
        self._judge = self._evaluator()

    def _evaluator(self) -> Evaluator:
        order = list(range(len(self._images.search)))
        random.Random(self._seed).shuffle(order)
        chosen = self._images.search.take(order)
        preprocessing = self._bundle.manifest.preprocessing
        return Evaluator(
            self._plain, self._space.default, chosen.images, preprocessing, labels=chosen.labels, batch_size=BATCH
        )

    def point(self, fraction: float) -> tuple[dict[str, Any], Values | None]:
        """The best subnet within a share of the oracle's latency, and whether it is right on each test image."""
        about: dict[str, Any] = {"fraction": fraction, "form": self._form, "reachable": False}
        try:
            limit_ms = self._corrected_limit(fraction)
            for searches in range(1, SEARCHES + 1):
                ranked = self._ranked(self._searched(limit_ms).best(self._effort.population * self._effort.generations))
                found, factor = self._first_within(fraction, ranked)
                about |= {"searches": searches, "limit_ms": limit_ms, "model_error": self._model.error}
                if found is not None:
                    return self._tested(about, *found)
                limit_ms = min(fraction * factor, LOWER * limit_ms)
        except BudgetError as error:
            return about | {"reason": str(error)}, None
        return about | {"reason": "every finalist was slower"}, None

    def _tested(
        self, about: dict[str, Any], score: Score, estimate: float, ratio: float
    ) -> tuple[dict[str, Any], Values]:
        right = rights_of(self._plain, score.gates, self._images.test)
        about |= {"reachable": True, "gates": str(score.gates), "ratio": ratio, "accuracy": float(right.mean())}
        about |= {"search_accuracy": score.quality, "estimate": estimate, "alternatives": _labels(score.gates)}
        return about, right

    def _corrected_limit(self, fraction: float) -> float:
        """Milliseconds of the model that stand for a share of the oracle's latency, near that share."""
        limit_ms = fraction * self._model.predict_ms(self._space.default) / self._full_ratio
        for _ in range(CORRECTIONS):
            seeds = near_budget_seeds(self._space, self._model.cost, self._damage, limit_ms, TIMED_SEEDS, self._seed)
            with alone(self._what):
                factor = median(self._model.predict_ms(gates) / self._ratio(gates) for gates in seeds)
            before, limit_ms = limit_ms, fraction * factor
            if CLOSE * limit_ms <= before <= limit_ms or seeds[0].is_default:
                break
        return limit_ms

    def _searched(self, limit_ms: float) -> EvolutionSearch:
        """A search that has asked for as many subnets as the effort says."""
        search = EvolutionSearch(
            self._space,
            predict_ms=self._model.cost,
            limit_ms=limit_ms,
            prior=self._damage,
            population=self._effort.population,
            generations=self._effort.generations,
            seed=self._seed,
        )
        while not search.done:
            search.tell([self._judge.score(gates, self._model.predict_ms(gates)) for gates in search.ask()])
        return search

    def _ranked(self, scores: Sequence[Score]) -> list[tuple[Score, float]]:
        """Best first by accuracy, drawn towards what prior and latency say of it: of many, chance favours some."""
        values = np.stack([self._judge.values(score.gates) for score in scores])
        about = np.array([[self._damage(score.gates), self._model.cost(score.gates)] for score in scores])
        estimates = shrunken(values, about)
        return [(scores[place], float(estimates[place])) for place in np.argsort(-estimates, kind="stable")]

    def _first_within(
        self, fraction: float, ranked: Sequence[tuple[Score, float]]
    ) -> tuple[tuple[Score, float, float] | None, float]:
        """The first of a few subnets that was measured within `fraction` twice, its estimate and the second ratio.

        Beside it the model's milliseconds per share, by what was measured: where all were slower, the search has found
        out where the model is too fast, and is repeated within a limit that is corrected by its own finds.
        """
        factors = []
        for score, estimate in ranked[:FINALISTS]:
            with alone(self._what):
                ratio = self._ratio(score.gates)
                if ratio <= fraction:
                    ratio = self._ratio(score.gates, CONFIRMING)
                    if ratio <= fraction:
                        return (score, estimate, ratio), 0.0
            factors.append(self._model.predict_ms(score.gates) / ratio)
        return None, median(factors)

    def _ratio(self, gates: Gates, times: int = 1) -> float:
        """Median of a subnet over that of the oracle, from interleaved rounds of these two alone.

        As the networks made for one latency are measured: beside several others in each round the oracle, which is the
        largest, finds the least of its weights in the caches, and every ratio would be lower.
        """
        inputs = random_inputs(self._timed.inputs, seed=self._seed)
        pair = [Candidate(self._timed, inputs, gates), Candidate(self._oracle, inputs, gates)]
        with self._timed.hold([gates]):
            own, reference = measure_candidates(pair, runs=times * self._effort.runs, seed=self._seed)
        return own.p50_ms / reference.p50_ms


def _labels(gates: Gates) -> list[str]:
    rows = zip(gates.space.groups, gates.values, gates.active, strict=True)
    return [group.labels[int(value)] for group, value, active in rows if active and isinstance(value, int)]
