"""Shifts that a device may see: other frequencies of the classes, or one condition of weather and light."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["IMAGES", "Draw", "Half", "Weights", "shifts_of", "split"]

IMAGES, LEAST_IMAGES = 256, 16
ROUNDING = 1e-6

SUBSET = 20
DIRICHLET = (0.01, 0.1, 1.0)

Weights = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Draw = Callable[[np.random.Generator], Weights]
"""Draws a weight for every image."""


def shifts_of(labels: Indices, conditions: npt.NDArray[np.str_] | None) -> dict[str, Draw]:
    """By name; the first is none. Each condition alone where there are some, else other frequencies of the classes.

    Args:
        labels: of all images, [N].
        conditions: of all images, [N], or None.
    """
    return _class_shifts(labels) if conditions is None else _condition_shifts(conditions)


def _class_shifts(labels: Indices) -> dict[str, Draw]:
    classes = int(labels.max()) + 1

    def dirichlet(alpha: float) -> Draw:
        return lambda rng: rng.dirichlet(np.full(classes, alpha))[labels]

    def subset(rng: np.random.Generator) -> Weights:
        return np.isin(labels, rng.choice(classes, SUBSET, replace=False)).astype(np.float64)

    shifts: dict[str, Draw] = {"none": lambda rng: np.ones(len(labels)), f"{SUBSET} classes": subset}
    return shifts | {f"Dirichlet {alpha:g}": dirichlet(alpha) for alpha in DIRICHLET}


def _condition_shifts(conditions: npt.NDArray[np.str_]) -> dict[str, Draw]:
    def only(name: str) -> Draw:
        return lambda rng: np.asarray(conditions == name, np.float64)

    shifts: dict[str, Draw] = {"none": lambda rng: np.ones(len(conditions))}
    return shifts | {str(name): only(name) for name in np.unique(conditions)}


@dataclass(frozen=True, slots=True)
class Half:
    """Images with a weight above 0, and their shares, which add up to 1."""

    images: Indices
    shares: Weights

    @property
    def effective(self) -> float:
        """Of how many equally likely images a mean over the shares would be as sure."""
        return float(1 / (self.shares**2).sum())

    def sample(self, rng: np.random.Generator) -> Indices:
        """What a device would see: up to `IMAGES` different images, as often as the shares say.

        Of more than 1 over the largest share the likeliest would come too seldom. At least `LEAST_IMAGES`, though:
        where the shift has fewer, some come twice.
        """
        return self.repeated(max(LEAST_IMAGES, min(IMAGES, int(1 / self.shares.max() + ROUNDING))), rng)

    def repeated(self, count: int, rng: np.random.Generator) -> Indices:
        """So many images in random order, each as often as its share says, rounded up or down (systematic sampling)."""
        order = rng.permutation(len(self.images))
        upto = np.cumsum(self.shares[order])
        places = (rng.random() + np.arange(count)) / count * upto[-1]
        chosen: Indices = self.images[order[np.searchsorted(upto, places, side="right")]]
        return rng.permutation(chosen)


def split(weights: Weights, rng: np.random.Generator) -> tuple[Half, Half]:
    """Random halves of the images under one shift; both are all images of it where one of them would be empty."""
    order = rng.permutation(len(weights))
    own, other = (half[weights[half] > 0] for half in np.array_split(order, 2))
    both = np.concatenate([own, other])
    own, other = (own, other) if len(own) and len(other) else (both, both)
    return _half(own, weights), _half(other, weights)


def _half(images: Indices, weights: Weights) -> Half:
    return Half(images, weights[images] / weights[images].sum())
