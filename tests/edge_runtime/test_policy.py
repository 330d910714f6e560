import dataclasses
import itertools
import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import UsageError
from edge_runtime.gates import GateGroup, GateSpace
from edge_runtime.objectives import Frontier, Score
from edge_runtime.policy import AdaptationPolicy, History, Reading

SPACE = GateSpace((GateGroup("u", "choice", ("full", "b", "c", "d", "e", "f", "g", "h")),))
ALL = list(SPACE.enumerate())


def frontier_of(latencies_ms):
    """Subnet 0 is the slowest and the best."""
    ordered = sorted(set(latencies_ms), reverse=True)[: len(ALL)]
    qualities = [0.99 - 0.02 * index for index in range(len(ordered))]
    return Frontier.of(
        Score(gates, quality, quality, quality, 100, latency_ms, None, True)
        for gates, quality, latency_ms in zip(ALL, qualities, ordered, strict=False)
    )


LADDER = frontier_of([10, 9, 8, 7, 6, 5, 4, 3])


@dataclasses.dataclass
class Loop:
    """An application that runs frames and obeys the policy; `slowdown(time_s, gates)` is what the machine does."""

    policy: AdaptationPolicy
    frontier: Frontier
    budget_ms: float
    active: Score
    frame_s: float = 1 / 30
    time_s: float = 0.0
    history: History = dataclasses.field(default_factory=History)
    switches: list = dataclasses.field(default_factory=list)

    def run(self, seconds, slowdown):
        end = self.time_s + seconds
        while self.time_s < end:
            self.time_s += self.frame_s
            latency_ms = self.active.latency_ms * slowdown(self.time_s, self.active.gates)
            decision = self.decide(latency_ms)
            if decision.switch:
                self.switches.append((self.time_s, self.active, decision))
                self.active = next(score for score in self.frontier.scores if score.gates == decision.gates)
        return self

    def decide(self, latency_ms):
        reading = Reading(self.time_s, latency_ms)
        decision = self.policy.decide(reading, self.active, self.frontier, self.budget_ms, self.history)
        self.history = decision.history
        return decision


def loop(budget_ms=10.5, active=None, frontier=LADDER, **settings):
    return Loop(AdaptationPolicy(**settings), frontier, budget_ms, active or frontier.highest)


def steady(factor):
    return lambda time_s, gates: factor


# ---- what a person sees


def test_a_busy_machine_is_met_within_a_few_frames_and_a_calm_one_is_used_again():
    app = loop().run(10, steady(0.95))
    assert app.switches == []
    app.run(20, steady(1.8))
    (time_s, _, down), *more = app.switches
    assert more == []
    assert time_s - 10 < 0.3
    assert str(down.gates) == "5"  # 5 ms x 1.8 x 1.1 is inside 10.5 ms, 6 ms is not
    app.run(20, steady(0.95))
    assert [str(decision.gates) for _, _, decision in app.switches] == ["5", "0"]


def test_the_reasons_say_what_happened_in_numbers():
    app = loop(budget_ms=9.0, active=LADDER.best(9.0)).run(3, steady(0.9)).run(5, steady(1.8))
    app.run(9, steady(0.9))
    down, up = (decision.reason for _, _, decision in app.switches)
    assert down == "latency 16.2 ms > 9.0 ms budget: load 1.8x; 1 -> 6"
    assert up == "quality 87.0% -> 97.0% fits: latency 9.0 ms <= 9.0 ms budget: load 1.0x; 6 -> 1"


def test_where_nothing_fits_the_fastest_runs_and_the_reason_says_so():
    app = loop().run(3, steady(1)).run(3, steady(6))
    ((_, _, down),) = app.switches
    assert str(down.gates) == "7"
    assert "nothing fits, the fastest is taken" in down.reason
    kept = app.decide(18.0)
    assert not kept.switch
    assert kept.reason == "over the budget, but nothing is faster"


def test_where_nothing_fits_load_never_pushes_below_the_floor_and_a_budget_may():
    useless = Frontier.of([dataclasses.replace(LADDER.fastest, quality=0.2, low=0.1, high=0.3), *LADDER.scores[1:]])
    app = loop(frontier=useless).run(3, steady(1)).run(3, steady(6))
    ((_, _, down),) = app.switches
    assert down.gates == useless.scores[1].gates
    assert "nothing fits, the fastest of use is taken" in down.reason
    asked = loop(budget_ms=3.5, frontier=useless).run(3, steady(1))
    assert [decision.gates for _, _, decision in asked.switches] == [useless.fastest.gates]
    free = loop(frontier=useless, floor=0.0).run(3, steady(1)).run(3, steady(6))
    assert [decision.gates for _, _, decision in free.switches] == [useless.fastest.gates]


def test_a_few_hiccups_change_nothing():
    rng = random.Random(0)
    app = loop().run(60, lambda time_s, gates: 5.0 if rng.random() < 0.03 else 0.9)
    assert app.switches == []


def test_a_subnet_over_the_budget_is_left_even_on_a_calm_machine():
    app = loop(budget_ms=8.5).run(2, steady(0.7))
    assert [str(decision.gates) for _, _, decision in app.switches] == ["2"]


def test_no_budget_means_the_best():
    app = loop(budget_ms=math.inf, active=LADDER.fastest).run(10, steady(3))
    assert [str(decision.gates) for _, _, decision in app.switches] == ["0"]


def test_a_new_frontier_is_used_at_once():
    app = loop(budget_ms=6.0, active=LADDER.best(6.0)).run(6, steady(0.9))
    app.frontier = Frontier.of([*LADDER.scores, dataclasses.replace(LADDER.highest, latency_ms=5.5, samples=999)])
    app.run(7, steady(0.9))
    assert [decision.gates for _, _, decision in app.switches] == [LADDER.highest.gates]


def test_frames_of_another_subnet_are_forgotten():
    app = loop()
    for _ in range(5):
        app.decide(99.0)
    app.active = LADDER.fastest  # swapped by the user
    decision = app.decide(99.0)
    assert not decision.switch
    assert decision.load is None
    assert len(app.history.ratios) == 1


# ---- what always holds

ladders = st.lists(st.integers(4, 80).map(lambda quarters: quarters / 4), min_size=1, max_size=8).map(frontier_of)
segments = st.lists(st.tuples(st.floats(0.2, 20), st.floats(0.3, 6)), min_size=1, max_size=5)
policies = st.builds(
    AdaptationPolicy,
    down_after_frames=st.integers(1, 8),
    window=st.integers(8, 40),
    up_after_s=st.floats(0.1, 6),
    dwell_s=st.floats(0, 4),
    margin=st.floats(0, 0.5),
)


@given(policies, ladders, st.floats(0.5, 25), segments, st.integers(0, 99))
def test_on_any_trace_the_dwell_the_budget_and_the_reasons_are_kept(policy, frontier, budget_ms, trace, seed):
    rng = random.Random(seed)
    app = Loop(policy, frontier, budget_ms, rng.choice(frontier.scores))
    for seconds, load in trace:
        app.run(seconds, lambda time_s, gates, load=load: load * rng.lognormvariate(0, 0.2))
    times = [time_s for time_s, _, _ in app.switches]
    assert all(later - earlier >= policy.dwell_s for earlier, later in itertools.pairwise(times))
    for _, before, decision in app.switches:
        target = next(score for score in frontier.scores if score.gates == decision.gates)
        assert decision.gates != before.gates
        fits = decision.load * target.latency_ms <= budget_ms * (1 + 1e-9)
        assert fits or frontier.best(budget_ms / decision.load) is None
        assert fits or target == frontier.fastest
        assert (target.quality > before.quality) == (decision.load * before.latency_ms <= budget_ms)
        assert re.search(rf"load [0-9.]+x; {before.gates} -> {decision.gates}$", decision.reason)


@settings(max_examples=40)
@given(ladders, st.floats(0.5, 25), st.floats(0.2, 6), st.integers(0, 7))
def test_a_constant_load_ends_in_one_place(frontier, budget_ms, load, start):
    app = Loop(AdaptationPolicy(), frontier, budget_ms, frontier.scores[start % len(frontier.scores)], 0.1)
    app.run(60, steady(load))
    assert len(app.switches) <= 2
    before = len(app.switches)
    app.run(120, steady(load))
    assert len(app.switches) == before


@settings(max_examples=40)
@given(ladders, st.floats(0.5, 25), st.dictionaries(st.integers(0, 7), st.floats(0.5, 4)))
def test_a_load_that_differs_between_subnets_makes_no_endless_cycle(frontier, budget_ms, loads):
    app = Loop(AdaptationPolicy(max_up_after_s=1e9), frontier, budget_ms, frontier.highest, 0.1)
    app.run(400, lambda time_s, gates: loads.get(gates.vector()[0], 1.0))
    # A climb that is taken back doubles the patience: 5, 10, 20, ... seconds.
    assert len(app.switches) <= 4 + 2 * math.log2(400 / 5)


def test_patience_starts_anew_once_a_climb_has_lasted():
    app = loop(up_after_s=2, max_up_after_s=64)
    heavy_on_the_best = {0: 1.5}
    app.run(40, lambda time_s, gates: heavy_on_the_best.get(gates.vector()[0], 0.9))
    assert app.history.failed_climbs >= 2
    app.run(70, steady(0.9)).run(2, steady(2)).run(1, steady(0.9))
    assert app.history.failed_climbs == 0


def test_the_longest_patience_is_kept_to():
    app = loop(up_after_s=1, max_up_after_s=4)
    app.run(60, lambda time_s, gates: 1.5 if gates.vector()[0] == 0 else 0.9)
    climbs = [time_s for time_s, before, decision in app.switches if decision.gates == LADDER.highest.gates]
    waits = [later - earlier for earlier, later in itertools.pairwise(climbs[3:])]
    assert waits
    assert all(4 <= wait <= 8 for wait in waits)


@pytest.mark.parametrize(
    "change",
    [
        {"down_after_frames": 0},
        {"window": 5},
        {"up_after_s": 0.0},
        {"dwell_s": math.nan},
        {"margin": -0.1},
        {"max_up_after_s": 1.0},
    ],
)
def test_a_policy_cannot_be_built_invalid(change):
    with pytest.raises(UsageError):
        AdaptationPolicy(**change)


@pytest.mark.parametrize(("time_s", "latency_ms"), [(math.nan, 1), (0, -1), (0, math.nan), (0, math.inf)])
def test_a_reading_cannot_be_built_invalid(time_s, latency_ms):
    with pytest.raises(UsageError):
        Reading(time_s, latency_ms)
