"""From what the searches of one case and budget found to regrets and costs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from common import rounded
from search_draws import REFERENCE, Draws
from search_regret import best_on, equal_regret, summary
from search_trial import Terms

from edge_runtime.quality import Values

__all__ = ["report"]

COSTS = ("subnets", "images", "blocks", "shared_blocks", "evaluation_s", "own_s")
KINDS = {"plain": "blocks", "shared": "shared_blocks"}
OURS, RANDOM = "ours", "random, "


def report(terms: Terms, draws: Draws) -> dict[str, Any]:
    """Every search's figures, what rivals pay for our regret, and what prefix reuse would save."""
    figures = _Figures(terms, draws)
    searches = {name: figures.of(name) for name in figures.found}
    return {
        "limit_ms": rounded(terms.limit_ms),
        "reference_accuracy": rounded(float(figures.reference.mean())),
        "random_accuracy": rounded(float(figures.at_random.mean())),
        "full_accuracy": rounded(float(figures.full.mean())),
        "searches": searches,
        "equal_regret": _rivals(searches, figures),
        "prefix_saving": {name: _saving(told.values()) for name, told in figures.found.items()},
    }


class _Figures:
    """Accuracies on the other half of every draw."""

    def __init__(self, terms: Terms, draws: Draws) -> None:
        self._terms, self._draws = terms, draws
        self._right: dict[str, Values] = {}
        self.draws = sorted(draws.found[REFERENCE])
        self.found = {name: told for name, told in draws.found.items() if name != REFERENCE}
        """By search and draw what it told."""
        chosen = [self._reference(draw) for draw in self.draws]
        shuffled = [str(gates) for gates in draws.random_subnets()]
        self.reference = self._accuracies(dict(zip(self.draws, chosen, strict=True)))
        rows = [self._accuracies(dict.fromkeys(self.draws, gates)) for gates in shuffled]
        self.at_random: Values = np.mean(rows, axis=0)
        self.full = self._accuracies(dict.fromkeys(self.draws, str(terms.space.default)))

    def of(self, name: str) -> dict[str, Any]:
        """One search: its answer's figures and costs, and those of what it would have answered earlier."""
        told = self.found[name]
        found = {draw: points[-1]["gates"] for draw, points in told.items()}
        costs = {key: rounded(_mean(points[-1][key] for points in told.values())) for key in COSTS}
        body = {"draws": len(told), "accuracy": rounded(float(self._accuracies(found).mean()))}
        seconds = {"seconds": rounded(costs["evaluation_s"] + costs["own_s"])}
        return body | self._summary(found) | self._behind(found) | costs | seconds | {"trace": self._trace(told)}

    def regret(self, name: str, draws: Iterable[int]) -> float:
        """Mean regret of a search on some draws, points."""
        told = self.found[name]
        return float(self._summary({draw: told[draw][-1]["gates"] for draw in draws})["regret_points"])

    def _behind(self, found: Mapping[int, str]) -> dict[str, float | None]:
        """By how many points our search with labels is better on the same draws, with its 95 % margin."""
        ours = self.found.get(OURS, {})
        both = {draw: gates for draw, gates in found.items() if draw in ours}
        if not both:
            return {}
        own = self._accuracies({draw: ours[draw][-1]["gates"] for draw in both})
        figures = summary(own, self._accuracies(both), np.zeros(len(both)))
        return {"behind_ours": rounded(figures.regret_points), "behind_ours_margin": rounded(figures.regret_margin)}

    def _trace(self, told: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
        steps = []
        for place in range(min(map(len, told.values()))):
            at = {draw: points[place] for draw, points in told.items()}
            step = {key: rounded(_mean(point[key] for point in at.values())) for key in ("blocks", "shared_blocks")}
            steps.append(step | self._summary({draw: point["gates"] for draw, point in at.items()}))
        return steps

    def _summary(self, found: Mapping[int, str]) -> dict[str, float | None]:
        places = [self.draws.index(draw) for draw in found]
        figures = summary(self.reference[places], self._accuracies(found), self.at_random[places])
        return {key: rounded(value) for key, value in asdict(figures).items()}

    def _reference(self, draw: int) -> str:
        """The best on the half that was seen, of the reference's candidates and of all that was found."""
        own, _ = self._draws.halves(draw)
        told = [points[draw] for name, points in self.found.items() if draw in points]
        names = list(dict.fromkeys([*self._draws.found[REFERENCE][draw], *(points[-1]["gates"] for points in told)]))
        costs = np.array([self._terms.cost(self._terms.space.parse(name)) for name in names])
        return names[best_on(np.stack([self._of(name)[own] for name in names]), costs)]

    def _accuracies(self, subnets: Mapping[int, str]) -> Values:
        return np.array([self._of(name)[self._draws.halves(draw)[1]].mean() for draw, name in subnets.items()])

    def _of(self, name: str) -> Values:
        """For each image of the case 1.0 where a subnet is right."""
        if name not in self._right:
            labels = self._terms.labels
            classes = self._terms.kept.classes(self._terms.space.parse(name), np.arange(len(labels)))
            self._right[name] = np.asarray(classes == labels, np.float64)
            print(f"\rscored {len(self._right)} subnets", end="", file=sys.stderr, flush=True)
        return self._right[name]


def _rivals(searches: Mapping[str, Any], figures: _Figures) -> dict[str, Any]:
    """What others pay for the regret of our search with labels, by blocks; `shared`: only theirs share prefixes."""
    if OURS not in searches:
        return {}
    traces = {name: body["trace"] for name, body in searches.items() if not name.startswith((OURS, RANDOM))}
    at_random = [step for name, body in searches.items() if name.startswith(RANDOM) for step in body["trace"]]
    traces |= {"random": at_random} if at_random else {}
    found = {}
    for name, trace in traces.items():
        some = figures.found[name if name in figures.found else OURS]
        regret, blocks = figures.regret(OURS, some), searches[OURS]["blocks"]
        pairs = {key: [(step[kind], step["regret_points"]) for step in trace] for key, kind in KINDS.items()}
        found[name] = {key: asdict(equal_regret(blocks, regret, pair)) for key, pair in pairs.items()}
    return found


def _saving(told: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, float | None]:
    """Percent of blocks that ideal prefix reuse would save."""
    last = [points[-1] for points in told]
    plain = sum(point["blocks"] for point in last)
    shared = {"asked_together": "shared_blocks", "whole_round": "round_blocks"}
    return {key: rounded(100 * (1 - sum(point[kind] for point in last) / plain)) for key, kind in shared.items()}


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
