"""What the scored arms say together: accuracies, paired differences on the same test images, and the bars they are for.

Where an arm has two seeds, each image counts with the mean of both. Differences are in points of accuracy, with 95 %
intervals over the test images; they say nothing of how much a third seed would differ.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from elastify_arms import ARMS, FIGURES, Arm
from elastify_oracle import oracle_figures
from elastify_points import kept_points, kept_right, point_within, shared_points, shared_right
from elastify_quantised import WHOLE, quantised_folder

from edge_runtime.quality import Comparison, Values

__all__ = ["OURS", "report"]

OURS = "ours"
MADE_FOR_ONE = tuple(name for name in ARMS if Arm(name, 0).fraction is not None)
LOW_BUDGETS = 0.7
"""Up to this share the difference to AdaptiveNet is averaged."""


def report(work: Path, arms: Sequence[Arm], fractions: Sequence[float], oracle: Values) -> dict[str, Any]:
    """Everything known so far as JSON types.

    Args:
        work: the work folder.
        arms: those that count; what is not scored yet is left out.
        fractions: shares of the oracle's latency.
        oracle: for each test image whether the oracle is right.
    """
    known = [arm for arm in arms if kept_points(work / arm.folder)]
    pairs = _Pairs(work, known, oracle)
    against = {name: pairs.at_each(name, fractions) for name in ARMS if name != OURS and not name.startswith("purpose")}
    gaps = {
        "oracle": pairs.at_each("oracle", fractions),
        **{name: found for name, found in against.items() if found},
        "purpose": pairs.purpose(),
        "quantised": pairs.quantised(),
    }
    low = [fraction for fraction in fractions if fraction <= LOW_BUDGETS]
    mean = pairs.mean_over("adaptivenet", low)
    return {
        "oracle": oracle_figures(work) | {"onnx_test_accuracy": float(oracle.mean()), "test_images": len(oracle)},
        "arms": {arm.folder: _about(work / arm.folder) for arm in known},
        "ours_minus": gaps,
        "ours_minus_adaptivenet_up_to_70": mean,
        "bars": _bars(gaps, mean, fractions),
    }


def _about(folder: Path) -> dict[str, Any]:
    about = dict(json.loads((folder / FIGURES).read_text(encoding="utf-8")))
    return about | {"points": shared_points(folder), "own_points": kept_points(folder)}


class _Pairs:
    """Comparisons of ours with the others, on the same test images."""

    def __init__(self, work: Path, arms: Sequence[Arm], oracle: Values) -> None:
        self._work, self._arms, self._oracle = work, arms, oracle

    def at_each(self, name: str, fractions: Sequence[float]) -> dict[str, Any]:
        """Ours minus another arm at each share that both reach."""
        found = {f"{fraction:.2f}": self._pair(name, fraction) for fraction in fractions}
        return {key: pair for key, pair in found.items() if pair is not None}

    def mean_over(self, name: str, fractions: Sequence[float]) -> dict[str, Any] | None:
        """Ours minus another arm, the mean over those shares that both reach."""
        sides = [self._sides(name, fraction) for fraction in fractions]
        both = [side for side in sides if side is not None]
        if not both:
            return None
        own, other = (np.mean([side[index] for side in both], axis=0) for index in range(2))
        return _points(own, other) | {"budgets": len(both)}

    def purpose(self) -> dict[str, Any]:
        """Ours minus each network of its own, at that network's latency."""
        found = {}
        for arm in self._arms:
            if arm.fraction is not None:
                point = next(iter(kept_points(self._work / arm.folder).values()))
                own, other = self._mean(OURS, point["ratio"]), shared_right(self._work / arm.folder, arm.fraction)
                if own is not None and other is not None:
                    found[arm.name] = _points(own, other) | {"ratio": point["ratio"]}
        return found

    def quantised(self) -> dict[str, Any]:
        """Each network that onnxruntime quantised, and ours minus it by the best that was found within its latency."""
        names = ["oracle", *(arm.folder for arm in self._arms if arm.fraction is not None)]
        folders = {name: quantised_folder(self._work if name == "oracle" else self._work / name) for name in names}
        points = {name: list(kept_points(folder).values()) for name, folder in folders.items()}
        return {name: self._beside(folders[name], *found) for name, found in points.items() if found}

    def _beside(self, folder: Path, point: dict[str, Any]) -> dict[str, Any]:
        about = {"ratio": point["ratio"], "accuracy": point["accuracy"]}
        own = [self._work / arm.folder for arm in self._arms if arm.name == OURS]
        found = [point_within(each, point["ratio"]) for each in own]
        rights = [at and kept_right(each, at["fraction"]) for each, at in zip(own, found, strict=True)]
        mine, other = _mean_of(rights), kept_right(folder, WHOLE)
        if mine is None or other is None:  # what is slower is no answer to it
            return about
        return about | _points(mine, other) | {"ours_ratios": [at["ratio"] for at in found if at]}

    def _pair(self, name: str, fraction: float) -> dict[str, Any] | None:
        sides = self._sides(name, fraction)
        return None if sides is None else _points(*sides)

    def _sides(self, name: str, fraction: float) -> tuple[Values, Values] | None:
        """Both arms by the seeds that both have, so that their luck with a seed is the same."""
        if name == "oracle":
            own = self._mean(OURS, fraction)
            return None if own is None else (own, self._oracle)
        seeds = self._seeds(OURS) & self._seeds(name)
        own, other = (self._mean(each, fraction, seeds) for each in (OURS, name))
        return None if own is None or other is None else (own, other)

    def _seeds(self, name: str) -> set[int]:
        return {arm.seed for arm in self._arms if arm.name == name}

    def _mean(self, name: str, fraction: float, seeds: Set[int] | None = None) -> Values | None:
        chosen = [arm for arm in self._arms if arm.name == name and (seeds is None or arm.seed in seeds)]
        found = [shared_right(self._work / arm.folder, fraction) for arm in chosen]
        return _mean_of(found)


def _mean_of(rights: Sequence[Values | None]) -> Values | None:
    """For each image the mean of all seeds; None where one of them has nothing."""
    known = [right for right in rights if right is not None]
    return np.mean(known, axis=0) if known and len(known) == len(rights) else None


def _points(own: Values, other: Values) -> dict[str, Any]:
    gap = Comparison.of(own, other)
    figures = {"ours": own.mean(), "other": other.mean(), "points": gap.difference, "low": gap.low, "high": gap.high}
    return {name: round(100 * float(value), 3) for name, value in figures.items()}


def _bars(gaps: dict[str, Any], mean: dict[str, Any] | None, fractions: Sequence[float]) -> list[dict[str, Any]]:
    """The bars; `met` is None where figures are missing: of one that is about several, where one of them is."""
    rival = _all([pair["points"] for pair in gaps.get("adaptivenet", {}).values()], len(fractions))
    oracle = {key: -pair["points"] for key, pair in gaps["oracle"].items()}
    purpose = _all([-pair["points"] for pair in gaps["purpose"].values()], len(MADE_FOR_ONE))
    low = sum(fraction <= LOW_BUDGETS for fraction in fractions)
    mean = mean if mean and mean["budgets"] == low else None
    unlabelled = gaps.get("ours-unlabelled", {}).get("0.60")
    return [
        _bar("over AdaptiveNet, mean of the budgets up to 70 %, points", mean and mean["points"], at_least=1.5),
        _bar("over AdaptiveNet where it is least, points", min(rival, default=None), at_least=0.0),
        _bar("under the oracle at 80 %, points", oracle.get("0.80"), at_most=2.0),
        _bar("under the oracle at 60 %, points", oracle.get("0.60"), at_most=5.0),
        _bar("under a network of its own where it is most, points", max(purpose, default=None), at_most=0.5),
        _bar("lost without labels at 60 %, points", unlabelled and unlabelled["points"], at_most=1.0),
    ]


def _all(points: list[float], wanted: int) -> list[float]:
    """The points where all of them are there, else none: without one of them the extreme of the others says nothing."""
    return points if len(points) == wanted else []


def _bar(
    what: str, value: float | None, *, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    met = None
    if value is not None:
        met = value >= at_least if at_least is not None else at_most is not None and value <= at_most
    limit = {"at_least": at_least} if at_least is not None else {"at_most": at_most}
    return {"bar": what, "value": value, **limit, "met": met}
