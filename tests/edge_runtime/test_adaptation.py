from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from edge_runtime.adaptation import AdaptPlan, AdaptResult, Finals, without_unusable
from edge_runtime.adaptation.trust import Trust
from edge_runtime.errors import BudgetError, UsageError
from edge_runtime.gates import Gates
from edge_runtime.objectives import RUNS_NEEDED, Budget
from tests.support.scripted import (
    COST,
    PRIOR,
    SPACE,
    jittered_cost,
    right,
    spiky_cost,
)
from tests.support.scripted_jobs import IMAGES, exact_quality, make_job, run


@pytest.mark.parametrize("limit_ms", [3.5, 5.0, 7.0, 9.0, 11.0])
def test_the_chosen_subnet_meets_the_budget_and_is_nearly_the_best_there_is(limit_ms: float) -> None:
    result = run(make_job(Budget(latency_ms=limit_ms)))
    chosen = result.choice.score
    assert chosen.measured
    assert chosen.latency_ms <= limit_ms
    best = max(exact_quality(g) for g in SPACE.enumerate() if COST(g) * 1.05 <= limit_ms * 0.96)
    assert exact_quality(chosen.gates) >= best - 0.02


def test_generations_end_where_more_of_them_are_not_worth_it() -> None:
    budget = Budget(latency_ms=9.0)
    jobs = [make_job(budget, labelled=True, population=4, least_gain=gain) for gain in (0.0, 0.5)]
    for job in jobs:
        assert run(job).choice.score.latency_ms <= 9.0
    many, few = (len(job.evaluator.known()) for job in jobs)
    assert few < many


class NotingFinals(Finals):
    """Notes for how long each group is measured."""

    def steps(self, group: Sequence[Gates], runs: int, seconds: float) -> Iterator[None]:
        self.asked = [*getattr(self, "asked", []), (len(group), seconds)]
        return super().steps(group, runs, seconds)


def test_further_groups_are_measured_for_half_of_the_time() -> None:
    job = make_job(Budget(latency_ms=5.0), table_scale=0.8, finals=NotingFinals)  # by the table too much fits
    run(job)
    (_, first), *later = job._finals.asked
    assert later
    assert {seconds for _, seconds in later} == {first / 2}
    assert all(size <= 3 for size, _ in later)


def nearly_the_best_of_what_fits(limit_ms: float, tail: float) -> float:
    """Quality of the best subnet whose p95 of `tail` times its median keeps the headroom, less 3 points."""
    return max(exact_quality(g) for g in SPACE.enumerate() if COST(g) * tail <= limit_ms * 0.96) - 0.03


@pytest.mark.parametrize("limit_ms", [5.0, 7.0, 9.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_machine_with_rare_spikes_costs_no_quality(limit_ms: float, seed: int) -> None:
    # One run in thirty takes twice as long: above the median of each subnet's own p95, and often among its worst 5 %.
    result = run(make_job(Budget(latency_ms=limit_ms), cost_ms=spiky_cost(1 / 30, seed=seed), seed=seed))
    assert exact_quality(result.choice.score.gates) >= nearly_the_best_of_what_fits(limit_ms, tail=1.1)


@pytest.mark.parametrize("seed", range(6))
def test_a_share_of_the_full_subnet_is_no_share_of_its_spikes(seed: int) -> None:
    result = run(make_job(Budget(fraction=0.6), cost_ms=spiky_cost(1 / 30, seed=seed), seed=seed))
    assert COST(result.choice.score.gates) <= 0.6 * COST(SPACE.default)


@pytest.mark.parametrize("current", ["full", "2-2-2-2-2"])
@pytest.mark.parametrize(("limit_ms", "table_scale"), [(7.0, 1.0), (5.0, 0.6), (5.0, 1.5)])
def test_a_search_without_time_takes_the_best_of_the_frontier_and_not_the_fastest(
    current: str, limit_ms: float, table_scale: float
) -> None:
    job = make_job(Budget(latency_ms=limit_ms), seconds=0.5, current=current, table_scale=table_scale)
    result = run(job)
    assert result.ended_early
    assert exact_quality(result.choice.score.gates) >= nearly_the_best_of_what_fits(limit_ms, tail=1.05) - 0.05


def test_the_time_limit_that_cuts_the_groups_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    unseen = iter([[gates] for gates in SPACE.enumerate()])
    monkeypatch.setattr("edge_runtime.adaptation.groups.Groups.better", lambda *_: next(unseen))
    job = make_job(Budget(latency_ms=7.0), seconds=9.0, images=IMAGES[:8])
    assert run(job).ended_early
    assert not job._shortlist.ended_early


def test_memory_that_nobody_can_meet_is_found_out_in_one_group() -> None:
    job = make_job(Budget(memory_mib=1.0))
    with pytest.raises(BudgetError, match="peaks at"):
        run(job)
    assert len(job._finals.measurements) <= 7


def test_where_the_table_is_too_slow_the_search_goes_up_to_the_budget() -> None:
    result = run(make_job(Budget(latency_ms=7.0), table_scale=1.6))
    assert exact_quality(result.choice.score.gates) >= nearly_the_best_of_what_fits(7.0, tail=1.05)


def test_no_measured_feasible_finalist_is_significantly_better() -> None:
    job = make_job(Budget(latency_ms=6.0), labelled=True)
    result = run(job)
    for candidate in result.choice.candidates:
        if candidate.score.latency_ms <= 6.0 * 0.96:
            assert not job.evaluator.compare(candidate.score.gates, result.choice.score.gates).better


def test_finalists_have_enough_runs_for_their_p95() -> None:
    result = run(make_job(Budget(latency_ms=6.0)))
    assert min(len(m.latencies_ns) for m in result.measurements) >= RUNS_NEEDED[95]
    measured = {m.gates for m in result.measurements}
    assert {c.score.gates for c in result.choice.candidates} == measured
    assert SPACE.default in measured


def test_a_fraction_is_of_the_measured_full_subnet() -> None:
    result = run(make_job(Budget(fraction=0.5)))
    assert result.choice.score.latency_ms <= 0.5 * result.full_latency_ms
    assert result.full_latency_ms == pytest.approx(12.0, rel=0.06)


@pytest.mark.parametrize("scale", [0.7, 1.4, 3.0])
def test_a_wrong_table_costs_quality_but_never_the_budget(scale: float) -> None:
    result = run(make_job(Budget(latency_ms=6.0), table_scale=scale))
    assert result.choice.score.latency_ms <= 6.0


def test_a_table_by_which_nothing_fits_does_not_have_the_last_word() -> None:
    result = run(make_job(Budget(latency_ms=3.0), table_scale=1.5))
    assert result.choice.score.gates == SPACE.parse("2-2-2-2-2")


def test_a_subnet_that_only_just_fits_is_better_than_none() -> None:
    result = run(make_job(Budget(latency_ms=2.51), cost_ms=COST))
    assert str(result.choice.score.gates) == "2-2-2-2-2"


def test_an_infeasible_budget_names_the_fastest_subnet_and_its_measured_latency() -> None:
    with pytest.raises(
        BudgetError, match=r"no subnet meets .*1 ms.* 2-2-2-2-2, has a measured p95 of 2\.[56][0-9] ms"
    ) as caught:
        run(make_job(Budget(latency_ms=1.0)))
    assert caught.value.hint


def test_no_budget_keeps_the_full_subnet() -> None:
    result = run(make_job(Budget()))
    assert result.choice.score.gates == SPACE.default
    assert "kept" in {candidate.fate for candidate in result.choice.candidates}


@pytest.mark.parametrize("latency_ms", [20.0, 3.0, 0.5])
def test_memory_that_nobody_can_meet_is_said_to_be_memory(latency_ms: float) -> None:
    with pytest.raises(BudgetError, match=r"MiB, above the budget of 1 MiB") as caught:
        run(make_job(Budget(latency_ms=latency_ms, memory_mib=1.0)))
    assert caught.value.fastest == ""  # none was looked for


def test_the_time_limit_ends_the_search_early_and_says_so() -> None:
    slow = make_job(Budget(latency_ms=60.0), seconds=5.0, cost_ms=lambda gates: 8 * COST(gates))
    result = run(slow)
    assert result.ended_early
    assert result.choice.score.latency_ms <= 60.0
    assert min(len(m.latencies_ns) for m in result.measurements) >= RUNS_NEEDED[95]
    assert not run(make_job(Budget(latency_ms=6.0), seconds=1000.0)).ended_early


def test_every_candidate_says_what_became_of_it() -> None:
    result = run(make_job(Budget(latency_ms=6.0)))
    gates = [candidate.score.gates for candidate in result.candidates]
    assert len(gates) == len(set(gates)) > 10
    assert all(candidate.reason for candidate in result.candidates)
    assert {"chosen", "reference", "fell early"} <= {candidate.fate for candidate in result.candidates}
    json.dumps([candidate.to_json() for candidate in result.candidates])


def test_where_only_unusable_subnets_meet_the_budget_there_is_an_error() -> None:
    budget = Budget(latency_ms=6.0)
    result = run(make_job(budget))
    bad = frozenset(c.score.gates for c in result.candidates if c.score.latency_ms <= 6.0)
    with pytest.raises(
        BudgetError, match=r"no usable subnet meets the budget of 6 ms: .* outputs were unusable"
    ) as caught:
        without_unusable(result, bad, budget)
    assert SPACE.parse(caught.value.fastest) not in bad
    assert caught.value.latency_ms > 6.0  # type: ignore[operator]
    assert without_unusable(result, frozenset(), budget) is result


def test_what_was_not_measured_is_expected_to_be_as_slow_as_what_was_makes_it() -> None:
    result = run(make_job(Budget(latency_ms=6.0), table_scale=1.25))
    expected = [candidate.score for candidate in result.candidates if not candidate.score.measured]
    assert {"unmeasured", "fell early"} <= {candidate.fate for candidate in result.candidates}
    for score in expected:
        assert score.latency_ms == pytest.approx(COST(score.gates), rel=0.08)


def test_the_frontier_reaches_from_the_fastest_to_the_full_subnet() -> None:
    result = run(make_job(Budget(latency_ms=8.0)))
    chosen, scores = result.choice.score, result.frontier.scores
    assert result.frontier.best(8.0) == chosen
    assert result.frontier.fastest.latency_ms < 4.0
    assert scores[-1].gates == SPACE.default
    assert {score.measured for score in scores} == {True, False}


def test_the_same_seed_gives_the_same_choice() -> None:
    first, second = (run(make_job(Budget(latency_ms=6.0), seed=3)) for _ in range(2))
    seen = [[(c.score.gates, c.score.latency_ms, c.fate, c.reason) for c in r.candidates] for r in (first, second)]
    assert seen[0] == seen[1]


def test_few_images_are_enough_to_choose() -> None:
    result = run(make_job(Budget(latency_ms=6.0), images=IMAGES[:1]))
    assert result.choice.score.latency_ms <= 6.0


def slower_than_the_table(gates: Gates) -> float:
    return COST(gates) * (1.08 if COST(gates) > 6.5 else 1.0)


def shown_one_easy_image(limit_ms: float, current: str, cost_ms: Callable[[Gates], float] = COST) -> AdaptResult:
    easy = next(image for image in IMAGES if all(right(gates, image) for gates in SPACE.enumerate()))
    images = np.repeat(easy[None], 128, axis=0)
    return run(make_job(Budget(latency_ms=limit_ms), current=current, images=images, cost_ms=cost_ms))


@pytest.mark.parametrize("cost_ms", [COST, slower_than_the_table])
@pytest.mark.parametrize("current", ["full", "2-2-2-2-2"])
@pytest.mark.parametrize("limit_ms", [5.0, 8.0, 11.0])
def test_one_image_for_hours_talks_nobody_into_a_bad_subnet(
    current: str, limit_ms: float, cost_ms: Callable[[Gates], float]
) -> None:
    chosen = shown_one_easy_image(limit_ms, current, cost_ms).choice.score
    assert chosen.quality == 1.0  # as all are on this image
    assert PRIOR(chosen.gates) <= Trust(COST, PRIOR, lambda: 0.0).most_damage(0.88 * limit_ms)
    blind = min((gates for gates in SPACE.enumerate() if COST(gates) <= limit_ms), key=COST)
    assert exact_quality(chosen.gates) > exact_quality(blind) + 0.05


def test_every_candidate_is_told_once() -> None:
    for limit_ms in (5.0, 7.0, 11.0):
        told = [candidate.score.gates for candidate in run(make_job(Budget(latency_ms=limit_ms))).candidates]
        assert len(told) == len(set(told)) > 5


def test_one_image_for_hours_leaves_a_frontier_in_the_order_of_the_prior() -> None:
    result = shown_one_easy_image(8.0, "full")
    subnets = [score.gates for score in result.frontier.scores]
    assert len(subnets) >= 4
    assert SPACE.default in subnets
    chosen = result.choice.score.gates
    assert result.frontier.best(8.0).gates == chosen
    trust = Trust(COST, PRIOR, lambda: 0.0)
    for limit_ms in (3.0, 5.0, 7.0):
        served = result.frontier.best(limit_ms)
        assert trust.allows(served.gates, max(COST(gates) for gates in subnets if COST(gates) <= limit_ms))


@pytest.mark.parametrize(
    "bad", [{"seconds": 0.0}, {"runs": 0}, {"subsets": (96, 32)}, {"subsets": ()}, {"headroom": 1.0}, {"seed": -1}]
)
def test_a_plan_cannot_be_built_invalid(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        AdaptPlan(Budget(), **bad)


def test_jitter_is_only_on_top() -> None:
    cost = jittered_cost()
    assert all(COST(SPACE.default) <= cost(SPACE.default) <= 1.05 * COST(SPACE.default) for _ in range(100))
