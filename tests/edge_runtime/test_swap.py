from __future__ import annotations

import threading

import pytest

from edge_runtime.errors import GateError
from edge_runtime.gates import GateGroup, GateSpace
from edge_runtime.swap import HISTORY, ActiveGates

SPACE = GateSpace(tuple(GateGroup(f"unit{i}", "choice", ("original", "narrow", "skip")) for i in range(3)))


def test_a_swap_is_seen_by_the_next_lease_and_not_by_the_last() -> None:
    active = ActiveGates(SPACE.default, wall_clock=lambda: "2026-01-01T00:00:00+00:00")
    before = active.lease()
    record = active.swap(SPACE.parse("0-1-2"), "too slow")
    assert before.gates == SPACE.default
    assert active.lease().gates == SPACE.parse("0-1-2")
    assert active.lease().generation == before.generation + 1 == 1
    assert record is not None
    assert record.to_json() == {
        "before": "0-0-0",
        "after": "0-1-2",
        "reason": "too slow",
        "generation": 1,
        "at": "2026-01-01T00:00:00+00:00",
    }
    assert active.history == (record,)


def test_a_swap_to_the_active_subnet_is_no_swap() -> None:
    active = ActiveGates(SPACE.default)
    assert active.swap(SPACE.parse("full"), "again") is None
    assert active.history == ()


def test_a_decision_made_on_an_older_subnet_is_dropped() -> None:
    active = ActiveGates(SPACE.default)
    active.swap(SPACE.parse("1-1-1"), "operator")
    assert active.swap(SPACE.parse("2-2-2"), "policy", expected=SPACE.default) is None
    assert active.gates == SPACE.parse("1-1-1")


def test_gates_of_another_model_are_refused() -> None:
    other = GateSpace((GateGroup("unit0", "choice", ("original", "skip")),))
    with pytest.raises(GateError, match="another model"):
        ActiveGates(SPACE.default).swap(other.default, "mistake")


def test_history_is_bounded_but_generations_go_on() -> None:
    active = ActiveGates(SPACE.default)
    both = [SPACE.parse("1-0-0"), SPACE.default]
    for index in range(HISTORY + 10):
        active.swap(both[index % 2], "soak")
    assert len(active.history) == HISTORY
    assert active.history[-1].generation == active.lease().generation == HISTORY + 10


def test_writers_from_many_threads_lose_no_generation() -> None:
    active = ActiveGates(SPACE.default)
    subnets = list(SPACE.enumerate())
    done = []

    def swap_often(offset: int) -> None:
        done.append(sum(active.swap(subnets[(offset + i) % len(subnets)], "race") is not None for i in range(300)))

    threads = [threading.Thread(target=swap_often, args=(7 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert active.lease().generation == sum(done)
    generations = [swap.generation for swap in active.history]
    assert generations == list(range(sum(done) - len(generations) + 1, sum(done) + 1))
    befores, afters = [swap.before for swap in active.history], [swap.after for swap in active.history]
    assert befores[1:] == afters[:-1]
