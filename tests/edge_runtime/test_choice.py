from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edge_runtime.adaptation import choose
from edge_runtime.adaptation.trust import LEAST_SLACK, LEEWAY, SLACK, Trust
from edge_runtime.additive import fastest
from edge_runtime.gates import Gates
from edge_runtime.objectives import Budget, Score
from edge_runtime.quality import Comparison
from tests.support.scripted import (
    COST,
    PRIOR,
    SPACE,
)
from tests.support.scripted_jobs import FAST, FULL, SIMILAR, SLOW


def judge(better: set[tuple[str, str]]) -> Callable[[Gates, Gates], Comparison]:
    """A comparison by which only the pairs in `better` can be told apart."""

    def compare(first: Gates, second: Gates) -> Comparison:
        sign = ((str(first), str(second)) in better) - ((str(second), str(first)) in better)
        return Comparison(sign * 0.05, sign * 0.05 - 0.01, sign * 0.05 + 0.01, 200)

    return compare


def pick(finalists: list[Score], current: str, compare: Any, budget: Budget, **trusted: Any) -> Any:
    bounds = {score.gates: score.latency_ms / 0.96 for score in finalists}
    return choose(
        finalists,
        current=SPACE.parse(current),
        budget=budget,
        limit_ms=budget.limit_ms(12.0),
        bound_ms=bounds.__getitem__,
        compare=compare,
        **trusted,
    )


def test_what_is_measured_within_the_limit_but_not_surely_is_called_uncertain() -> None:
    choice = pick([FULL, SLOW, FAST], "full", judge(set()), Budget(latency_ms=9.1))
    fates = {c.score.gates: (c.fate, c.reason) for c in choice.candidates}
    fate, reason = fates[SLOW.gates]  # 9.0 ms, and up to 9.38 with what is uncertain
    assert fate == "uncertain"
    assert "9.00 ms, up to 9.38 ms" in reason
    assert fates[FULL.gates][0] == "reference"
    over = pick([FULL, SLOW, FAST], "full", judge(set()), Budget(latency_ms=8.9))
    assert {c.score.gates: c.fate for c in over.candidates}[SLOW.gates] == "over budget"


def test_in_doubt_the_current_subnet_stays_where_it_is_feasible() -> None:
    choice = pick([FULL, SLOW, SIMILAR, FAST], "2-2-2-2-2", judge(set()), Budget(latency_ms=10))
    assert choice.score == FAST
    assert "cannot tell" in choice.reason
    assert "kept" in choice.reason


def test_in_doubt_the_cheaper_is_taken_where_the_current_is_not_feasible() -> None:
    choice = pick([FULL, SLOW, SIMILAR, FAST], "full", judge({("1-0-0-0-0", "2-2-2-2-2")}), Budget(latency_ms=10))
    assert choice.score == SIMILAR
    assert "cheaper" in choice.reason
    fates = {str(c.score.gates): c.fate for c in choice.candidates}
    assert fates == {
        "0-0-0-0-0": "reference",
        "1-0-0-0-0": "indistinguishable",
        "0-1-0-0-0": "chosen",
        "2-2-2-2-2": "lost",
    }


def test_doubt_alone_gives_no_quality_away() -> None:
    choice = pick([FULL, SLOW, FAST], "full", judge(set()), Budget(latency_ms=10))
    assert choice.score == SLOW


def test_a_significantly_better_subnet_takes_over() -> None:
    choice = pick([FULL, SLOW, FAST], "2-2-2-2-2", judge({("1-0-0-0-0", "2-2-2-2-2")}), Budget(latency_ms=10))
    assert choice.score == SLOW
    assert {str(c.score.gates): c.fate for c in choice.candidates}["2-2-2-2-2"] == "worse"


def test_nothing_feasible_is_no_choice() -> None:
    assert pick([FULL, SLOW], "full", judge(set()), Budget(latency_ms=9.0)) is None
    assert pick([FULL, SLOW], "full", judge(set()), Budget(fraction=0.76)) is None
    assert pick([FULL, SLOW], "full", judge(set()), Budget(fraction=0.79)).score == SLOW


def test_of_what_cannot_be_told_apart_the_likely_best_is_taken_and_not_the_lucky_one() -> None:
    lucky = replace(SIMILAR, quality=0.93)
    worth = {FULL.gates: 1.0, SLOW.gates: 0.90, SIMILAR.gates: 0.89, FAST.gates: 0.80}
    choice = pick([FULL, SLOW, lucky, FAST], "full", judge(set()), Budget(latency_ms=10), likely=worth.__getitem__)
    assert choice.score == SLOW
    reasons = {str(c.score.gates): c.reason for c in choice.candidates}
    assert "more than all that was evaluated makes likely" in reasons["0-1-0-0-0"]


def test_what_is_likelier_than_the_current_one_falls_because_that_stays() -> None:
    worth = {FULL.gates: 1.0, SLOW.gates: 0.90, SIMILAR.gates: 0.85, FAST.gates: 0.80}
    known = [SLOW, replace(SIMILAR, quality=0.85), replace(FAST, quality=0.80)]
    choice = pick(known, "2-2-2-2-2", judge(set()), Budget(latency_ms=10), likely=worth.__getitem__)
    assert choice.score.gates == FAST.gates
    reasons = {str(c.score.gates): c.reason for c in choice.candidates}
    assert reasons["0-1-0-0-0"].endswith("the current one stays")


def test_what_is_significantly_worse_is_not_taken_however_likely_it_was() -> None:
    worth = {FULL.gates: 1.0, SLOW.gates: 0.90, FAST.gates: 0.95}
    better = judge({("1-0-0-0-0", "2-2-2-2-2")})
    choice = pick([FULL, SLOW, FAST], "2-2-2-2-2", better, Budget(latency_ms=10), likely=worth.__getitem__)
    assert choice.score == SLOW


def test_what_the_prior_does_not_trust_is_not_chosen_however_good_it_looks() -> None:
    expected = {FULL.gates: 0.0, SLOW.gates: 0.4, SIMILAR.gates: 0.2, FAST.gates: 3.0}
    finalists = [FULL, SLOW, SIMILAR, replace(FAST, quality=1.0, high=1.0)]
    trusted = {"damage": expected.__getitem__, "most_damage": 0.3}
    choice = pick(finalists, "2-2-2-2-2", judge(set()), Budget(latency_ms=10), **trusted)
    assert choice.score == SIMILAR
    fallen = {str(c.score.gates): (c.fate, c.reason) for c in choice.candidates}
    assert fallen["2-2-2-2-2"] == ("not trusted", "expected damage on clean images 3 > 0.3")


def test_where_nothing_is_trusted_the_least_damage_is_taken() -> None:
    expected = {FULL.gates: 0.0, SLOW.gates: 0.4, FAST.gates: 3.0}
    trusted = {"damage": expected.__getitem__, "most_damage": 0.3}
    choice = pick(
        [FULL, SLOW, replace(FAST, quality=1.0, high=1.0)], "full", judge(set()), Budget(latency_ms=10), **trusted
    )
    assert choice.score == SLOW


def test_the_trusted_damage_follows_what_the_limit_costs() -> None:
    limits = [3.0, 6.0, 9.0, math.inf]
    trust = Trust(COST, PRIOR)
    bounds = [trust.most_damage(limit_ms) for limit_ms in limits]
    for limit_ms, bound in zip(limits, bounds, strict=True):
        least = min(PRIOR(gates) for gates in SPACE.enumerate() if COST(gates) <= limit_ms)
        assert LEEWAY * least <= bound <= LEEWAY * least + SLACK * max(map(max, PRIOR.entries))
    assert bounds == sorted(bounds, reverse=True)
    assert trust.most_damage(0.01) == trust.most_damage(COST(fastest(COST)))  # below everything that of the fastest
    assert trust.most_damage(math.inf) < 0.05
    assert Trust(COST, PRIOR.scaled(0.0)).allows(SPACE.parse("2-2-2-2-2"), math.inf)  # no prior, no bound


def test_images_that_tell_nothing_leave_the_choice_to_the_prior() -> None:
    limits = [3.0, 6.0, 9.0, math.inf]
    most = {v: [Trust(COST, PRIOR, lambda v=v: v).most_damage(limit) for limit in limits] for v in (0.0, 0.5, 1.0)}
    assert most[1.0] == [Trust(COST, PRIOR).most_damage(limit) for limit in limits]
    for none, some, all_ in zip(*most.values(), strict=True):
        assert none < some < all_
    for limit, bound in zip(limits, most[0.0], strict=True):
        least = min(PRIOR(gates) for gates in SPACE.enumerate() if COST(gates) <= limit)
        assert least <= bound <= least + LEAST_SLACK * max(map(max, PRIOR.entries))
