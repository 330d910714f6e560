"""A search plans in pieces that are short enough to be done between two frames."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from edge_runtime import Budget
from edge_runtime.additive import Plan, fastest
from edge_runtime.search import EvolutionSearch
from tests.edge_runtime.test_search import deep_space, deep_tables, told
from tests.support.scripted_jobs import make_job

MOST_DRAWS = 20
"""Of two seeds at one latency 16, and of a generation 8 at a time, beside the best."""

MOST_CHILDREN = 100
"""Four places of 24 tries at most."""


class Work:
    """Counts what is planned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.draws = self.children = 0
        monkeypatch.setattr(Plan, "draw", self._counting("draws", Plan.draw))
        monkeypatch.setattr(EvolutionSearch, "_mutated", self._counting("children", EvolutionSearch._mutated))

    def _counting(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            setattr(self, name, getattr(self, name) + 1)
            return plain(*arguments)

        return counted

    def of(self, slices: Generator[None, None, Any] | Iterator[None]) -> list[tuple[int, int]]:
        """Draws and children of each slice."""
        counts = []
        while True:
            self.draws = self.children = 0
            ended = next(slices, self) is self
            counts.append((self.draws, self.children))
            if ended:
                return counts


@pytest.mark.parametrize("room", [2.0, 1.05])
def test_a_generation_is_planned_in_pieces(monkeypatch: pytest.MonkeyPatch, room: float) -> None:
    work, space = Work(monkeypatch), deep_space()
    cost, damage = deep_tables(space, 5)
    limit_ms = room * cost(fastest(cost))  # just above the fastest most children were asked before
    search = EvolutionSearch(space, predict_ms=cost, limit_ms=limit_ms, prior=damage, seed=5)
    counts: list[tuple[int, int]] = []
    while not search.done:
        before = set(search._asked)
        counts += work.of(search.asking())
        asked = sorted(search._asked - before, key=str)
        search.tell([told(gates, 0.9 - damage(gates) / 9, cost(gates)) for gates in asked])
    draws, children = zip(*counts, strict=True)
    assert sum(draws) > 100
    assert max(draws) <= MOST_DRAWS
    assert max(children) <= MOST_CHILDREN


def test_no_slice_of_a_search_plans_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    draws, children = zip(*work.of(make_job(Budget(latency_ms=6.0)).steps()), strict=True)
    assert sum(draws) > 100
    assert max(draws) <= MOST_DRAWS
    assert max(children) <= MOST_CHILDREN
