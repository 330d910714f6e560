"""A search beside other work measures what the loop does not see; the loop's own frames speak against it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from edge_runtime import Budget, EdgeModel
from edge_runtime.backends.base import SessionOptions
from edge_runtime.errors import ResourceError
from edge_runtime.profiles import load_profile
from edge_runtime.state import StateDir
from tests.support.scripted import (
    COST,
    answer,
    scripted_bundle,
    scripted_images,
    scripted_session,
    scripted_table,
)

FULL_MS = COST(scripted_bundle().manifest.space.default)
IN_THE_LOOP = Budget(latency_ms=1.2 * FULL_MS)


class Held:
    """A model whose search in the background takes `factor` times as long, and begins when it is let."""

    def __init__(self, factor: float, budget: Budget) -> None:
        self.gate = threading.Event()
        session = scripted_session(lambda gates: (factor if self._searching() else 1.0) * COST(gates), self._reply)
        self.model = EdgeModel(
            scripted_bundle(),
            session,
            SessionOptions(),
            profile=load_profile("generic-x86_64"),
            state=StateDir(None, "no state in this test"),
            table=scripted_table(),
            budget=budget,
            clock_ns=session.now_ns,
        )

    def _searching(self) -> bool:
        return threading.current_thread().name == "nnf-edge-adapt"

    def _reply(self, inputs: Any, gates: Any) -> dict[str, Any]:
        if self._searching():
            self.gate.wait(30)
        return answer(inputs, gates)

    def search(self, frames: int) -> None:
        """Answer so many frames while a search runs, and let it end."""
        images = scripted_images(64)
        self.model.adapt(list(images))
        for index in range(frames):
            self.model(images[index % len(images)])
        self.gate.set()
        self.model.adapt(wait=True)


@pytest.fixture
def opened() -> Iterator[list[EdgeModel]]:
    models: list[EdgeModel] = []
    yield models
    for model in models:
        model.close()


def test_a_busy_search_does_not_take_a_worse_subnet_where_the_loop_keeps_its_limit(opened: list[EdgeModel]) -> None:
    held = Held(3.0, IN_THE_LOOP)
    opened.append(held.model)
    with pytest.raises(ResourceError, match=r"p95 36\.\d+ ms.* in the loop \(p95 12\.00 ms\)"):
        held.search(200)
    assert held.model.gates.is_default
    assert held.model.frontier is None
    assert held.model.adapt().phase == "failed"


@pytest.mark.parametrize(
    ("factor", "budget", "frames"),
    [
        (3.0, IN_THE_LOOP, 0),  # nobody saw the loop
        (3.0, IN_THE_LOOP, 60),  # a p95 is not known from so few
        (3.0, Budget(fraction=0.6), 200),  # a share of what was measured as busy
        (1.0, Budget(latency_ms=0.5 * FULL_MS), 200),  # the loop is too slow as well
    ],
)
def test_else_what_a_search_measured_counts(
    opened: list[EdgeModel], factor: float, budget: Budget, frames: int
) -> None:
    held = Held(factor, budget)
    opened.append(held.model)
    held.search(frames)
    assert held.model.adapt().phase == "done"
    assert not held.model.gates.is_default


def test_a_calm_search_keeps_what_is_in_time(opened: list[EdgeModel]) -> None:
    held = Held(1.0, IN_THE_LOOP)
    opened.append(held.model)
    held.search(200)
    assert held.model.adapt().phase == "done"
    assert held.model.gates.is_default
