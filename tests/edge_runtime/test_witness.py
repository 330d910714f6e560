"""A search beside other work measures what the loop does not see; the loop's own frames speak against it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from edge_runtime import Budget, EdgeModel
from edge_runtime.errors import ResourceError
from tests.support.scripted import COST, SPACE, answer, scripted_images, scripted_model

FULL_MS = COST(SPACE.default)
IN_THE_LOOP = Budget(latency_ms=1.2 * FULL_MS)


class Held:
    """A model whose search in the background takes `factor` times as long, and measures when it is let."""

    def __init__(self, factor: float, budget: Budget) -> None:
        self.measuring, self.gate = threading.Event(), threading.Event()
        self.model = scripted_model(
            reply=self._reply,
            cost_ms=lambda gates: (factor if self._searching() else 1.0) * COST(gates),
            budget=budget,
        )

    def _searching(self) -> bool:
        return threading.current_thread().name == "nnf-edge-adapt"

    def _reply(self, inputs: Any, gates: Any) -> dict[str, Any]:
        running = self.model._searches.running if self._searching() else None
        if running is not None and running.job is not None and running.job.phase == "measure":
            self.measuring.set()
            self.gate.wait(30)
        return answer(inputs, gates)

    def search(self, frames: int) -> None:
        """Answer so many frames while finalists are measured, and let the search end."""
        images = scripted_images(64)
        self.model.adapt(list(images))
        running = self.model._searches.running
        assert running is not None
        assert self.measuring.wait(30)
        for index in range(frames):
            self.model(images[index % len(images)])
        running.hurry()
        self.gate.set()
        assert running.wait(30)


@pytest.fixture
def opened() -> Iterator[list[EdgeModel]]:
    models: list[EdgeModel] = []
    yield models
    for model in models:
        model.close()


def test_a_busy_search_does_not_take_a_worse_subnet_where_the_loop_keeps_its_limit(opened: list[EdgeModel]) -> None:
    held = Held(3.0, IN_THE_LOOP)
    opened.append(held.model)
    held.search(200)
    assert isinstance(held.model._searches.error, ResourceError)
    assert held.model.gates.is_default
    assert held.model.frontier is None
    status = held.model.adapt()
    assert status.phase == "failed"
    assert re.search(r"p95 36\.\d+ ms.* in the loop \(p95 12\.00 ms\)", status.reason)


@pytest.mark.parametrize(
    ("factor", "budget", "frames"),
    [
        (3.0, IN_THE_LOOP, 0),  # nobody saw the loop
        (3.0, IN_THE_LOOP, 60),  # a p95 is not known from so few
        (3.0, Budget(fraction=0.6), 200),  # a share of what was measured as busy
        (1.0, Budget(latency_ms=0.5 * FULL_MS), 200),  # the loop is too slow as well
        (1.0, Budget(latency_ms=1.02 * FULL_MS), 200),  # in time, without the room that a choice must have
        (1.2, Budget(latency_ms=1.1 * FULL_MS), 200),  # slower in the search, as a slice among frames may be
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
