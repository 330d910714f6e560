from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_runtime.adaptation.memory import Memory, memory_name
from edge_runtime.objectives import Budget, Frontier
from edge_runtime.state import StateDir
from tests.support.scripted import (
    SPACE,
    scripted_table,
)
from tests.support.scripted_jobs import FAST, FULL, SLOW, make_job, run


def test_memory_survives_a_restart(tmp_path: Path) -> None:
    result = run(make_job(Budget(latency_ms=6.0)))
    memory = Memory(
        scripted_table(), result.choice.score, result.frontier, result.full_latency_ms, Budget(latency_ms=6.0)
    )
    state, name = StateDir.open(tmp_path), memory_name("0" * 64, "cpu", "t1")
    memory.save(state, name)
    assert Memory.read(state, name, SPACE) == memory
    assert Memory.read(state, memory_name("0" * 64, "cpu", "t2"), SPACE) is None
    Memory(scripted_table()).save(state, name)
    assert Memory.read(state, name, SPACE) == Memory(scripted_table())


@pytest.mark.parametrize(
    "body", [[], {}, {"table": {}}, {"table": 3, "active": 1, "frontier": 2, "full_latency_ms": 0, "budget": 0}]
)
def test_memory_of_another_form_is_no_memory(tmp_path: Path, body: Any) -> None:
    state = StateDir.open(tmp_path)
    state.write_json("adapt.json", body)
    assert Memory.read(state, "adapt.json", SPACE) is None


def test_memory_with_a_word_for_a_number_is_no_memory(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path)
    Memory(scripted_table(), None, None, 12.0).save(state, "adapt.json")
    state.write_json("adapt.json", state.read_json("adapt.json") | {"full_latency_ms": "12"})
    assert Memory.read(state, "adapt.json", SPACE) is None


def test_where_to_start_under_which_budget() -> None:
    memory = Memory(scripted_table(), SLOW, Frontier.of([FAST, SLOW, FULL]), 12.0, Budget(latency_ms=10.0))
    assert memory.start(None) is not None
    assert memory.start(None)[0] == SLOW.gates  # type: ignore[index]
    assert memory.start(Budget(latency_ms=5.0))[0] == FAST.gates  # type: ignore[index]
    assert memory.start(Budget(latency_ms=1.0))[0] == FAST.gates  # type: ignore[index]
    assert memory.start(Budget(fraction=1.0))[0] == FULL.gates  # type: ignore[index]
    assert memory.start(Budget()) is None
    assert Memory(scripted_table()).start(Budget(latency_ms=10.0)) is None
    assert Memory(scripted_table()).limit_ms(Budget(fraction=0.5)) is None
