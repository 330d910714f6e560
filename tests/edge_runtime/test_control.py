from __future__ import annotations

import pytest

from edge_runtime.adaptation.control import Control
from edge_runtime.objectives import Frontier, Score
from edge_runtime.policy import AdaptationPolicy
from tests.support.scripted import (
    SPACE,
)
from tests.support.scripted_jobs import FAST, FULL, SLOW


def control(limit_frontier: tuple[Score, ...] = (FAST, SLOW, FULL)) -> Control:
    made = Control(AdaptationPolicy(down_after_frames=3, window=4, dwell_s=0.0, up_after_s=1.0))
    made.learn(Frontier.of(limit_frontier))
    return made


def test_slow_frames_move_the_loop_down_and_say_why() -> None:
    made = control()
    for index in range(4):
        made.observe(index / 10, 20.0, SLOW.gates)
    decision = made.decide(SLOW.gates, 10.0)
    assert decision is not None
    assert decision.switch
    assert decision.gates == FAST.gates
    assert "budget" in decision.reason
    assert made.load == pytest.approx(20 / 9)


def test_frames_of_another_subnet_and_an_unknown_subnet_decide_nothing() -> None:
    made = control()
    for index in range(9):
        made.observe(index / 10, 50.0, FULL.gates)
    assert made.decide(SLOW.gates, 10.0) is None
    made.observe(1.0, 50.0, SPACE.parse("1-1-1-1-1"))
    assert made.decide(SPACE.parse("1-1-1-1-1"), 10.0) is None
    assert Control(AdaptationPolicy()).decide(SLOW.gates, 10.0) is None


def test_new_scores_are_not_judged_by_what_was_seen_under_the_old() -> None:
    made = control()
    for index in range(3):
        made.observe(index / 10, 9.5, SLOW.gates)
    made.decide(SLOW.gates, 10.0)
    assert made.load is not None
    made.observe(0.3, 9.5, SLOW.gates)
    made.learn(Frontier.of((FAST, SLOW, FULL)))
    assert made.load is None
    assert made.decide(SLOW.gates, 10.0) is None
    made.observe(0.4, 50.0, SLOW.gates)
    decision = made.decide(SLOW.gates, 10.0)
    assert decision is not None
    assert "too few frames" in decision.reason


def test_a_subnet_with_unusable_outputs_is_never_gone_to_again() -> None:
    made = control()
    made.forget(FAST.gates)
    assert made.frontier is not None
    assert FAST not in made.frontier.scores
    made.forget(SLOW.gates)
    made.forget(FULL.gates)
    assert made.frontier is None
