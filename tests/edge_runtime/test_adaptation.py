from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.adaptation import AdaptJob, AdaptPlan, AdaptResult, Finals, choose, without_unusable
from edge_runtime.adaptation.background import BackgroundJob, _cpu_seconds, rest_seconds
from edge_runtime.adaptation.control import Control
from edge_runtime.adaptation.memory import Memory, memory_name
from edge_runtime.adaptation.trust import LEAST_SLACK, LEEWAY, SLACK, Trust
from edge_runtime.additive import fastest
from edge_runtime.errors import BackendError, BudgetError, EdgeError, UsageError
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import Gates
from edge_runtime.inputs import Frame, normalise
from edge_runtime.objectives import RUNS_NEEDED, Budget, Frontier, Score
from edge_runtime.policy import AdaptationPolicy
from edge_runtime.quality import Comparison
from edge_runtime.state import StateDir
from tests.support.scripted import (
    COST,
    PREPROCESSING,
    PRIOR,
    SPACE,
    jittered_cost,
    right,
    scripted_images,
    scripted_session,
    scripted_table,
    spiky_cost,
    true_labels,
)

IMAGES = scripted_images(256)


def make_job(
    budget: Budget,
    *,
    current: str = "full",
    table_scale: float = 1.0,
    labelled: bool = False,
    cost_ms: Callable[[Gates], float] | None = None,
    images: Frame = IMAGES,
    seconds: float = 22.0,
    seed: int = 0,
    finals: type[Finals] = Finals,
    population: int = 12,
    least_gain: float = 0.005,
) -> AdaptJob:
    session = scripted_session(cost_ms)
    labels = true_labels(images) if labelled else None
    one = {"image": normalise(images[0], PREPROCESSING)[None]}
    return AdaptJob(
        finals=finals(session, one, seed=seed, clock_ns=session.now_ns),
        evaluator=Evaluator(session, SPACE.default, images, PREPROCESSING, labels=labels),
        calibrate=lambda: scripted_table(table_scale),
        prior=PRIOR,
        current=SPACE.parse(current),
        plan=AdaptPlan(budget, seconds, population=population, generations=4, least_gain=least_gain, seed=seed),
        clock_ns=session.now_ns,
    )


def run(job: AdaptJob) -> AdaptResult:
    for _ in job.steps():
        pass
    assert job.result is not None
    return job.result


def exact_quality(gates: Gates) -> float:
    """Share of the images on which a subnet answers as the full one does; both are right wherever the full one is."""
    return sum(right(gates, image) for image in IMAGES) / len(IMAGES)


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


# The choice itself.


def score(text: str, quality: float, latency_ms: float) -> Score:
    return Score(
        SPACE.parse(text), quality, max(0.0, quality - 0.05), min(1.0, quality + 0.05), 200, latency_ms, None, True
    )


def judge(better: set[tuple[str, str]]) -> Callable[[Gates, Gates], Comparison]:
    """A comparison by which only the pairs in `better` can be told apart."""

    def compare(first: Gates, second: Gates) -> Comparison:
        sign = ((str(first), str(second)) in better) - ((str(second), str(first)) in better)
        return Comparison(sign * 0.05, sign * 0.05 - 0.01, sign * 0.05 + 0.01, 200)

    return compare


FULL, FAST, SLOW = score("full", 1.0, 12.0), score("2-2-2-2-2", 0.80, 2.0), score("1-0-0-0-0", 0.90, 9.0)
SIMILAR = score("0-1-0-0-0", 0.899, 8.0)


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


# The thread.


class Slices:
    """A stand-in for a job: counts its slices, waits for nothing."""

    def __init__(self, slices: int, error: Exception | None = None) -> None:
        self.slices, self.error, self.ran = slices, error, 0
        self.began, self.ended = threading.Event(), threading.Event()

    def close(self) -> None:
        """Nothing is open."""

    def steps(self) -> Iterator[None]:
        self.began.set()
        try:
            for _ in range(self.slices):
                self.ran += 1
                yield
            if self.error:
                raise self.error
        finally:
            self.ended.set()


def background(job: Any, duty: float = 1.0) -> tuple[BackgroundJob, list[Any], list[EdgeError]]:
    done: list[Any] = []
    failed: list[EdgeError] = []
    return BackgroundJob(lambda: job, done=done.append, failed=failed.append, duty=duty), done, failed


def test_a_background_job_runs_to_its_end() -> None:
    job = Slices(5)
    thread, done, failed = background(job)
    assert thread.wait(30)
    assert (job.ran, done, failed) == (5, [job], [])
    assert not thread.running


class Watching(Slices):
    """Slices that note after how long a thread asks for the interpreter."""

    def __init__(self, slices: int) -> None:
        super().__init__(slices)
        self.intervals: list[float] = []

    def steps(self) -> Iterator[None]:
        for _ in super().steps():
            self.intervals.append(sys.getswitchinterval())
            yield


def test_other_threads_ask_for_the_interpreter_soon_while_a_search_runs_and_not_while_it_rests() -> None:
    before = sys.getswitchinterval()
    jobs = [Watching(20), Watching(20)]
    threads = [background(job)[0] for job in jobs]
    assert all(thread.wait(30) for thread in threads)
    assert max(jobs[0].intervals + jobs[1].intervals) < before / 10
    assert sys.getswitchinterval() == before
    resting = Burning(2)
    thread, _, _ = background(resting, duty=0.001)
    until = time.monotonic() + 30
    while sys.getswitchinterval() == before and time.monotonic() < until:  # its first slice
        pass
    while sys.getswitchinterval() != before and time.monotonic() < until:  # now it rests for seconds
        pass
    assert time.monotonic() < until
    assert thread.running
    thread.close()


def test_an_interval_that_the_program_sets_meanwhile_stays() -> None:
    before = sys.getswitchinterval()
    try:
        thread, _, _ = background(Setting())
        assert thread.wait(30)
        assert sys.getswitchinterval() == pytest.approx(2e-5)
    finally:
        sys.setswitchinterval(before)


class Setting(Slices):
    """A slice in which the program sets its own interval."""

    def __init__(self) -> None:
        super().__init__(1)

    def steps(self) -> Iterator[None]:
        sys.setswitchinterval(2e-5)
        yield


def test_a_background_job_that_fails_says_why() -> None:
    thread, done, failed = background(Slices(2, BudgetError("too slow")))
    assert thread.wait(30)
    assert done == []
    assert [str(error) for error in failed] == ["too slow"]


def test_closing_ends_a_background_job_between_two_slices() -> None:
    job = Slices(10**9)
    thread, done, failed = background(job, duty=0.01)
    assert job.began.wait(30)
    thread.close()
    assert thread.wait(30)
    assert job.ended.wait(30)
    assert (done, failed) == ([], [])


def test_an_error_after_closing_is_nobodys_business() -> None:
    gate = threading.Event()

    def wait_then_fail() -> Iterator[None]:
        gate.wait(30)
        raise BackendError("the session is closed")
        yield

    job = Slices(0)
    job.steps = wait_then_fail  # type: ignore[method-assign]
    thread, done, failed = background(job)
    thread._stop.set()
    gate.set()
    assert thread.wait(30)
    assert (done, failed) == ([], [])


def test_a_job_that_is_stopped_before_it_began_is_never_made() -> None:
    first, second, made = Slices(10**9), Slices(1), threading.Event()
    before, _, _ = background(first)

    def make() -> Any:
        made.set()
        return second

    thread = BackgroundJob(make, done=print, failed=print, after=before)
    thread.stop()
    assert before.running
    before.close()
    assert thread.wait(30)
    assert not made.is_set()


def test_closing_in_the_last_slice_drops_what_was_found() -> None:
    began, gate = threading.Event(), threading.Event()

    def last_slice() -> Iterator[None]:
        began.set()
        gate.wait(30)
        yield from ()

    job = Slices(0)
    job.steps = last_slice  # type: ignore[method-assign]
    thread, done, failed = background(job)
    assert began.wait(30)
    thread._stop.set()
    gate.set()
    assert thread.wait(30)
    assert (done, failed) == ([], [])


def test_a_fault_of_ours_reaches_whoever_waits() -> None:
    thread, done, failed = background(Slices(2, ZeroDivisionError("by zero")))  # type: ignore[arg-type]
    assert thread.wait(30)
    assert done == []
    assert "ZeroDivisionError: by zero" in str(failed[0])


@pytest.mark.parametrize(
    ("busy", "cpu", "duty", "threads", "rest"),
    [
        (0.02, 0.02, 0.25, 1, 0.06),
        (0.02, 0.04, 0.25, 2, 0.14),  # two threads of a slice take twice the CPU
        (0.04, 0.02, 0.25, 1, 0.04),  # where others hold the CPU it was given up already
        (0.02, 0.50, 0.25, 1, 0.06),  # never for more than its threads can take
        (0.05, 0.00, 0.25, 1, 0.0),
        (0.02, 0.04, math.inf, 2, 0.0),
    ],
)
def test_a_slice_and_its_rest_take_a_share_of_one_cpu(
    busy: float, cpu: float, duty: float, threads: int, rest: float
) -> None:
    assert rest_seconds(busy, cpu, duty, threads) == pytest.approx(rest)


class Waiting(Slices):
    """Slices that take no CPU."""

    def steps(self) -> Iterator[None]:
        for _ in range(self.slices):
            time.sleep(0.02)
            yield


class Burning(Slices):
    """Slices that take CPU."""

    def steps(self) -> Iterator[None]:
        for _ in range(self.slices):
            until = time.thread_time() + 0.02
            while time.thread_time() < until:
                pass
            yield


def pauses_of(job: Any, *, hurried: bool = False) -> list[float]:
    """How long a background job of a hundredth of a CPU wants to rest after each slice; it does not really rest."""
    pauses: list[float] = []
    began = threading.Event()

    def make() -> Any:
        began.wait(30)
        return job

    thread = BackgroundJob(make, done=print, failed=print, duty=0.01)
    thread._rest = pauses.append  # type: ignore[method-assign,assignment]
    if hurried:
        thread.hurry()
    began.set()
    assert thread.wait(30)
    return pauses


def test_a_job_rests_for_the_cpu_that_it_took_unless_somebody_waits_for_it() -> None:
    pauses = pauses_of(Burning(4))
    assert len(pauses) == 4
    assert min(pauses) > 0
    assert pauses_of(Burning(4), hurried=True) == [0.0] * 4
    assert sum(pauses_of(Waiting(4))) < sum(pauses) / 4


def test_a_rest_ends_when_somebody_waits_for_the_job() -> None:
    thread, done, _ = background(Burning(3), duty=0.001)  # 20 s of rest after each slice
    assert not thread.wait(0.3)
    thread.hurry()
    assert thread.wait(10)
    assert len(done) == 1


def test_the_cpu_of_a_slice_counts_for_all_threads_that_work() -> None:
    before = _cpu_seconds(1), _cpu_seconds(3)
    for _ in Burning(5).steps():
        pass
    one, three = (_cpu_seconds(threads) - was for threads, was in zip((1, 3), before, strict=True))
    assert one >= 0.1
    assert three == pytest.approx(3 * one, rel=0.1)


# The loop's control.


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


# What is remembered.


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


def test_jitter_is_only_on_top() -> None:
    cost = jittered_cost()
    assert all(COST(SPACE.default) <= cost(SPACE.default) <= 1.05 * COST(SPACE.default) for _ in range(100))
