"""What the subnets that were evaluated say of every alternative: the prior damage, corrected by what was seen here.

The log of the quality that a subnet lost is taken as a sum over its decisions. The bundle's prior damage, scaled to
what was seen, is the prior mean of each term; scores correct it by Bayesian linear regression. As the corrected damage
is a sum again, `Plan` finds the best subnet under a latency limit for any draw from the posterior: proposing those is
Thompson sampling (Thompson 1933; Russo et al. 2018, arXiv 1707.02038), which tries what might be best, and tries less
of it the surer it becomes. Sees no clock, file or device.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edge_runtime.additive import AdditiveCost
from edge_runtime.gates import Gates
from edge_runtime.objectives import Score

__all__ = ["LEAST_SCORES", "DamageModel"]

LEAST_SCORES = 4
"""Fewer say too little to correct a prior."""

DOUBT = 0.5
"""Standard deviation of what the prior says of one decision, relative to it: what ships with a bundle is rough."""

DOUBT_FLOOR = 0.2
"""The same for decisions of which the prior says nothing, relative to the mean of all."""

SLOPES = (0.1, 3.0)
"""Range of the factor between prior damage and lost log quality, relative to the ratio of their sizes."""

MISFIT = 0.02
"""Standard deviation of what a sum of decisions cannot say of the log of a quality."""

Matrix: TypeAlias = npt.NDArray[np.float64]


class DamageModel:
    """The damage of each decision as scores and prior have it, in lost log quality up to a constant; lower is better.

    Args:
        prior: Expected damage of a subnet, in any unit.
        scores: Of different subnets of its space, `LEAST_SCORES` or more.
    """

    def __init__(self, prior: AdditiveCost, scores: Sequence[Score]) -> None:
        self._space = prior.space
        rows = [(index, place, entry) for index, row in enumerate(prior.entries) for place, entry in enumerate(row)]
        # The original, of which the prior says nothing, is what the others are compared with.
        self._terms = [(index, place) for index, place, entry in rows if entry or place or self._has_bits(index)]
        self._columns = {term: column for column, term in enumerate(self._terms)}
        self._scores = tuple(scores)
        design = np.array([self._features(score.gates) for score in scores])
        losses, noise = _losses(scores)
        damages = np.array([prior.entries[index][place] for index, place in self._terms])
        damages = damages / (np.abs(damages).max(initial=0.0) or 1.0)
        constants = _constants(scores)
        expected = _slope(design @ damages, losses, noise, constants) * damages
        columns = np.column_stack([design, constants])
        left = _centred(losses - design @ expected, constants)
        doubt = _doubt(_centred(design, constants), left, noise, expected)
        mean, root = _posterior(columns, losses, noise + MISFIT**2, expected, doubt)
        self._mean, self._root = mean[: len(expected)], root[: len(expected)]
        sums = columns @ mean
        self._losses = sums + MISFIT**2 / (noise + MISFIT**2) * (losses - sums)

    def mean(self) -> AdditiveCost:
        """The expected damage of each decision."""
        return self._cost(self._mean)

    def draw(self, rng: random.Random) -> AdditiveCost:
        """Damages that are as likely as what is known makes them."""
        steps = np.random.default_rng(rng.getrandbits(63)).standard_normal(self._root.shape[1])
        return self._cost(self._mean + self._root @ steps)

    def qualities(self) -> dict[Gates, float]:
        """The quality that each scored subnet most likely has; of many scores the best was lucky.

        Of what a score differs from the sum of its decisions, the share is kept that is no noise of few images. May lie
        a little above 1.
        """
        qualities = np.exp(-self._losses).tolist()
        return dict(zip((score.gates for score in self._scores), qualities, strict=True))

    def _has_bits(self, index: int) -> bool:
        return self._space.groups[index].kind != "choice"

    def _features(self, gates: Gates) -> list[float]:
        """1 for each term that the subnet has."""
        found = [0.0] * len(self._terms)
        for index, (value, active) in enumerate(zip(gates.values, gates.active, strict=True)):
            on = [value] if isinstance(value, int) else [place for place, bit in enumerate(value) if bit]
            for place in on if active else ():
                column = self._columns.get((index, place))
                if column is not None:
                    found[column] = 1.0
        return found

    def _cost(self, damages: Matrix) -> AdditiveCost:
        rows = [[0.0] * group.size for group in self._space.groups]
        for (index, place), damage in zip(self._terms, damages.tolist(), strict=True):
            rows[index][place] = damage
        return AdditiveCost(self._space, 0.0, tuple(tuple(row) for row in rows))


def _losses(scores: Sequence[Score]) -> tuple[Matrix, Matrix]:
    """Minus the log of each quality, and at most the variance that few images give it.

    The variance is that of a quality half-way to the mean of all: a subnet that few images were kind to is not certain.
    """
    samples = np.array([max(1, score.samples) for score in scores], np.float64)
    quality = np.maximum(np.array([score.quality for score in scores]), 0.5 / samples)
    middle = (quality + quality.mean()) / 2
    smoothed = (middle * samples + 0.5) / (samples + 1)
    return -np.log(quality), (1 - smoothed) / (smoothed * samples)


def _slope(damages: Matrix, losses: Matrix, noise: Matrix, constants: Matrix) -> float:
    """Lost log quality per unit of prior damage, by least squares, above 0; never far from the ratio of their sizes.

    Scores whose damages hardly differ say nothing of it but noise.
    """
    size = math.sqrt(float((damages**2).mean())) or 1.0
    usual = math.sqrt(float((losses**2 + noise).mean()) + MISFIT**2) / size
    varied, lost = _centred(damages, constants), _centred(losses, constants)
    spread = float((varied**2).mean())
    if spread < 1e-12 * size**2:
        return usual
    return min(SLOPES[1] * usual, max(SLOPES[0] * usual, float((varied * lost).mean()) / spread))


def _constants(scores: Sequence[Score]) -> Matrix:
    """A column for each number of images: other images are easier or harder for all subnets alike."""
    samples = np.array([score.samples for score in scores])
    return np.asarray(samples[:, None] == np.unique(samples), np.float64)


def _centred(values: Matrix, constants: Matrix) -> Matrix:
    """Values (or rows of them) less the mean of their kind, which has the same number of images."""
    means = (constants.T @ values).T / constants.sum(axis=0)
    found: Matrix = values - constants @ means.T
    return found


def _doubt(design: Matrix, left: Matrix, noise: Matrix, expected: Matrix) -> Matrix:
    """Standard deviation of what the prior says of each term: rough in any case, more where it leaves much unsaid.

    What is left of the losses beyond the noise of few images is shared out among the terms that vary.
    """
    sizes = np.abs(expected)
    size = float(sizes.sum()) / max(1, len(sizes))
    weights = sizes + (size or 1.0)
    unsaid = math.sqrt(max(0.0, float((left**2).mean() - noise.mean()) - MISFIT**2))
    varies = math.sqrt(float((weights**2 * (design**2).mean(axis=0)).sum()))
    rough: Matrix = DOUBT * sizes + DOUBT_FLOOR * size + 1e-9
    return np.maximum(rough, weights * unsaid / varies) if varies > 0 else rough


def _posterior(
    columns: Matrix, losses: Matrix, noise: Matrix, expected: Matrix, doubt: Matrix
) -> tuple[Matrix, Matrix]:
    """Mean of each column's weight, and a root of their covariance; of those behind `expected` nothing is known."""
    free = columns.shape[1] - len(expected)
    mean, deviation = np.append(expected, np.zeros(free)), np.append(doubt, np.full(free, 1e3))
    # In units of each deviation, where the precision is the identity and more, however different the deviations are.
    scaled = columns * deviation
    precision = np.eye(len(mean)) + scaled.T @ (scaled / noise[:, None])
    mean = mean + deviation * np.linalg.solve(precision, scaled.T @ ((losses - columns @ mean) / noise))
    # With precision = L L', inverse(L') is a root of the covariance.
    return mean, deviation[:, None] * np.linalg.inv(np.linalg.cholesky(precision)).T
