"""The parts of tools/bench/search.py that a wrong figure could come from, on small spaces; the bench takes hours."""

import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"
sys.path.insert(0, str(BENCH))

import search_draws
from search_answers import NUMBERS, CountingSession, KeptClasses, Network, numbered
from search_blocks import blocks_of, plain_blocks, shared_blocks
from search_draws import REFERENCE, Draws, Setting
from search_nsga import gates_of, nsga, pymoo_version
from search_ours import NEAR, adapted, halved, random_feasible, random_search, unseeded
from search_regret import best_on, equal_regret, summary
from search_report import report
from search_rivals import Effort, adaptivenet, compensated, first_population, fitness, merge_patterns, mutated
from search_trial import Terms, Trial

from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.additive import Plan, fastest
from edge_runtime.gates import GateGroup, GateSpace
from edge_runtime.inputs import normalise
from edge_runtime.objectives import Budget
from tests.support.scripted import (
    CLASSES,
    COST,
    PREPROCESSING,
    PRIOR,
    SPACE,
    right,
    scripted_images,
    scripted_session,
    true_labels,
)
from tests.support.spaces import costs, spaces, subnets

IMAGES = scripted_images(120, seed=3)
LIMIT_MS = 0.7 * COST(SPACE.default)
PLAN = AdaptPlan(Budget(), subsets=(8, 24), population=6, generations=3, finalists=2)
EFFORT = Effort(population=8, generations=3, told=(1, 3))


@pytest.fixture
def terms(tmp_path):
    network = Network(scripted_session(), IMAGES, PREPROCESSING)
    kept = KeptClasses(network, tmp_path / "answers.sqlite")
    yield Terms(COST, PRIOR, LIMIT_MS, 0.5, network, kept, true_labels(IMAGES), len(CLASSES))
    kept.close()


def trial_of(terms, *, kept=True):
    return Trial(terms, np.arange(60), seed=1, width=4, kept=kept)


def runs_of(*texts, images=(0, 1, 2)):
    return [(SPACE.parse(text), images) for text in texts]


# Blocks


def test_a_merged_alternative_is_one_block_and_what_it_covers_none():
    assert blocks_of(SPACE.default) == 5 + 2  # stem and head beside the five units
    assert blocks_of(SPACE.parse("0-3-0-0-0")) == 4 + 2


def test_of_bits_those_that_are_on_are_blocks():
    space = GateSpace((GateGroup("a", "choice", ("x", "y")), GateGroup("b", "subset", ("p", "q", "r"))))
    assert blocks_of(space.gates([1, (1, 0, 1)])) == 1 + 1 + 2 + 1


def test_subnets_that_differ_in_the_last_decision_share_all_else_but_the_head():
    runs = runs_of("0-1-0-0-0", "0-1-0-0-2")
    assert plain_blocks(runs) == 3 * 2 * 7
    assert shared_blocks(runs) == 3 * (7 + 2)


def test_subnets_that_differ_in_the_first_decision_share_the_stem_only():
    assert shared_blocks(runs_of("0-0-0-0-0", "1-0-0-0-0")) == 3 * (7 + 6)


def test_a_merged_alternative_shares_nothing_with_the_block_that_it_begins_at():
    assert shared_blocks(runs_of("0-0-0-0-0", "0-3-0-0-0")) == 3 * (7 + 4)


def test_nothing_is_shared_across_images_nor_beyond_those_asked_for_together():
    apart = runs_of("0-0-0-0-0") + runs_of("0-0-0-0-1", images=(3, 4, 5))
    assert shared_blocks(apart) == plain_blocks(apart)
    together = runs_of("0-0-0-0-0", "0-0-0-0-1", "0-0-0-0-2")
    assert shared_blocks(together, width=2) == shared_blocks(together[:2]) + plain_blocks(together[2:])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_sharing_never_costs_and_more_subnets_never_share_less(data):
    space = data.draw(spaces())
    runs = [(gates, (0, 1)) for gates in data.draw(st.lists(subnets(space), min_size=1, max_size=8, unique=True))]
    assert shared_blocks(runs, width=1) == plain_blocks(runs)
    assert max(plain_blocks([run]) for run in runs) <= shared_blocks(runs) <= plain_blocks(runs)
    assert shared_blocks(runs) <= shared_blocks(runs, width=2)


# Answers


def test_numbers_of_images_survive_the_evaluators_normalisation():
    numbers = np.array([0, 1, 255, 256, 70_000, 2**24 - 1])
    seen = []
    session = CountingSession(lambda gates, images: seen.append(images) or np.zeros((len(images), 2)), 2, COST)
    session.run({"image": np.stack([normalise(frame, NUMBERS) for frame in numbered(numbers)])}, SPACE.default)
    assert seen[0].tolist() == numbers.tolist()


def test_kept_classes_are_those_of_the_network_and_outlive_it(terms, tmp_path):
    gates, images = SPACE.parse("1-1-1-2-0"), np.array([5, 3, 99, 3])
    expected = terms.network.logits(gates, images).argmax(1)
    assert terms.kept.classes(gates, images).tolist() == expected.tolist()
    ran = terms.network.ran
    again = KeptClasses(terms.network, tmp_path / "answers.sqlite")
    assert again.classes(gates, images[:3]).tolist() == expected[:3].tolist()
    assert terms.network.ran == ran
    again.close()


def test_evaluations_are_counted_and_scored_alike_whether_or_not_answers_are_kept(terms):
    gates, points = SPACE.parse("1-0-1-0-2"), []
    for kept in (False, True, True):
        trial = trial_of(terms, kept=kept)
        evaluator = trial.evaluator(40)
        assert evaluator.score(gates, 1.0).quality == np.mean([right(gates, image) for image in IMAGES[:40]])
        trial.tell(gates)
        points.append({key: value for key, value in trial.found[-1].items() if key != "own_s"})
    assert points[0] == points[1] == points[2]
    assert points[0]["blocks"] == 40 * 7
    assert points[0]["evaluation_s"] == pytest.approx(40 * 0.5 * COST(gates) / 1e3)


# Searches


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_random_subnets_are_distinct_and_within_the_limit(data):
    space = data.draw(spaces())
    cost = data.draw(costs(space))
    limit = cost(fastest(cost)) * data.draw(st.sampled_from((1.0, 1.3, 3.0)))
    found = random_feasible(Plan(cost, cost.scaled(0.0), limit), 5, random.Random(data.draw(st.integers(0, 9))))
    assert found
    assert len(set(found)) == len(found) <= 5
    assert all(cost(gates) <= limit * (1 + 1e-6) for gates in found)


def test_random_subnets_are_near_the_limit_where_there_are_enough(terms):
    assert all(COST(gates) >= NEAR * LIMIT_MS for gates in random_feasible(terms.plan, 10, random.Random(0)))


def test_halving_keeps_the_best_and_shows_most_images_to_few(terms):
    trial = trial_of(terms)
    evaluator, pool = trial.evaluator(60), random_feasible(terms.plan, 12, random.Random(0))
    best, *_ = halved(evaluator, COST, pool, ((10, 6), (30, 3), (60, 2)))
    assert sorted(evaluator.seen(gates) for gates in pool) == [10] * 6 + [30] * 3 + [60] * 3
    finalists = [gates for gates in pool if evaluator.seen(gates) == 60]
    assert evaluator.score(best, 1.0).quality == max(evaluator.score(gates, 1.0).quality for gates in finalists)


SEARCHES = {
    "ours": lambda trial: adapted(trial, trial.evaluator(60), PLAN),
    "no labels": lambda trial: adapted(trial, trial.evaluator(60, labelled=False), PLAN),
    "unseeded": lambda trial: unseeded(trial, trial.evaluator(60), PLAN),
    "random": lambda trial: random_search(trial, trial.evaluator(60), PLAN, 12),
    "AdaptiveNet": lambda trial: adaptivenet(trial, trial.evaluator(60), EFFORT),
}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_what_a_search_ends_with_is_within_the_limit_and_repeats(terms, name, share):
    limited = replace(terms, limit_ms=share * COST(SPACE.default))
    ends = []
    for _ in range(2):
        trial = trial_of(limited, kept=name not in ("ours", "no labels"))
        SEARCHES[name](trial)
        assert COST(SPACE.parse(trial.found[-1]["gates"])) <= limited.limit_ms * (1 + 1e-9)
        ends.append([(point["gates"], point["blocks"], point["shared_blocks"]) for point in trial.found])
    assert ends[0] == ends[1]


def test_the_unseeded_evolution_does_not_begin_with_the_planned_best(terms):
    planned, seeded = Plan(COST, PRIOR, LIMIT_MS).best(), trial_of(terms, kept=False)
    SEARCHES["ours"](seeded)
    assert planned in [gates for gates, _ in seeded.session.runs]
    without = trial_of(terms)
    SEARCHES["unseeded"](without)
    first = list(dict.fromkeys(gates for gates, _ in without.session.runs))[: PLAN.population]
    assert planned not in first
    assert all(COST(gates) <= LIMIT_MS * (1 + 1e-9) for gates, _ in without.session.runs)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_merge_patterns_are_all_subnets_of_originals_and_merged_alternatives(data):
    space = data.draw(spaces(kinds=("choice",)))

    def merging(gates):
        rows = zip(space.groups, gates.values, strict=True)
        return all(value == 0 or group.spans[value] > 1 for group, value in rows)

    found = merge_patterns(space, random.Random(0))
    assert set(found) == {gates for gates in space.enumerate() if merging(gates)}
    assert len(set(found)) == len(found)


def test_the_first_population_lies_near_nine_tenths_of_the_full_latency():
    patterns = [gates for gates in merge_patterns(SPACE, random.Random(0)) if 0.81 <= COST(gates) / 12 <= 0.99]
    found = first_population(COST, 8, random.Random(0))
    assert set(patterns) <= set(found)
    assert len(set(found)) == 8


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_compensation_never_leads_away_from_the_parents_latency(data):
    space = data.draw(spaces())
    cost, parent = data.draw(costs(space)), data.draw(subnets(space))
    rng = random.Random(data.draw(st.integers(0, 99)))
    child = mutated(parent, rng)
    after = compensated(child, cost, cost(parent), rng)
    assert abs(cost(after) - cost(parent)) <= abs(cost(child) - cost(parent)) + 1e-9


def test_compensation_also_follows_a_speed_up():
    slow, fast = SPACE.parse("0-0-0-0-0"), SPACE.parse("2-0-0-0-1")
    moved = {compensated(fast, COST, COST(slow), random.Random(seed)) for seed in range(20)}
    assert slow.replace(4, 1) in moved
    assert SPACE.parse("2-0-0-0-0") in moved


def test_fitness_puts_every_subnet_within_the_limit_first_and_the_faster_of_the_others():
    assert fitness(0.1, 10, 10) > fitness(0.9, 10.1, 10) > fitness(0.99, 12, 10)


def test_flat_vectors_become_subnets_even_where_no_bit_is_on():
    space = GateSpace((GateGroup("a", "choice", ("x", "y")), GateGroup("b", "subset", ("p", "q"))))
    assert gates_of(space, np.array([1, 0, 0])) == space.gates([1, (1, 0)])
    assert gates_of(space, np.array([0, 0, 1])) == space.gates([0, (0, 1)])


@pytest.mark.skipif(pymoo_version() is None, reason="pymoo is not installed; the bench leaves NSGA-II out")
def test_nsga_evaluates_nothing_above_the_limit(terms):
    trial = trial_of(terms)
    nsga(trial, trial.evaluator(60), EFFORT)
    assert all(COST(gates) <= LIMIT_MS for gates, _ in trial.session.runs)
    assert COST(SPACE.parse(trial.found[-1]["gates"])) <= LIMIT_MS


# Figures


def test_regret_and_gap_are_means_over_draws():
    figures = summary(np.array([0.9, 0.8]), np.array([0.88, 0.8]), np.array([0.8, 0.7]))
    assert figures.regret_points == pytest.approx(1.0)
    assert figures.regret_margin == pytest.approx(1.959964 * math.sqrt(2) / math.sqrt(2))
    assert figures.gap_closed == pytest.approx(0.9)


def test_one_draw_has_no_interval_and_no_gap_is_nothing_to_close():
    figures = summary(np.array([0.7]), np.array([0.7]), np.array([0.7]))
    assert math.isnan(figures.regret_margin)
    assert math.isnan(figures.gap_closed)


def test_the_best_of_equals_is_the_cheapest():
    answers = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert best_on(answers, np.array([5.0, 4.0, 1.0])) == 1


def test_a_rival_pays_the_least_with_which_its_regret_is_no_higher():
    trace = [(10, 3.0), (40, 1.0), (20, 1.5), (80, 0.2)]
    assert equal_regret(10, 1.0, trace).ratio == 4
    never = equal_regret(10, 0.1, trace)
    assert (never.reached, never.ratio) == (False, 8)


def test_a_stopped_run_goes_on_and_reports_what_an_uninterrupted_one_does(terms, tmp_path, monkeypatch):
    monkeypatch.setattr(search_draws, "RANDOM_SUBNETS", 5)
    setting = Setting(labels=30, unlabelled=40, effort=EFFORT, factor=2, plan=PLAN, random=(6, 12))
    path = tmp_path / "found.jsonl"
    Draws(terms, setting, path).make(2, 1)
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:4]) + '{"about": "cut of')
    draws = Draws(terms, setting, path)
    draws.make(2, 1)
    ran = terms.network.ran
    again = Draws(terms, setting, path)
    again.make(2, 1)
    assert terms.network.ran == ran
    body = report(terms, again)
    json.dumps(body, allow_nan=False)
    assert body["searches"]["AdaptiveNet"]["draws"] == 1
    assert body["searches"]["ours"]["draws"] == 2
    assert body["searches"]["ours"]["behind_ours"] == 0
    ours, other = (body["searches"][name] for name in ("ours", "random, 12"))
    assert other["behind_ours"] == pytest.approx(100 * (ours["accuracy"] - other["accuracy"]), abs=0.02)
    first = {name: told[0] for name, told in draws.found.items() if name != REFERENCE}
    for line in map(json.loads, whole.strip().splitlines()):
        if line["draw"] == 0 and line["search"] in first:
            assert [p["gates"] for p in line["found"]] == [p["gates"] for p in first[line["search"]]]


def test_the_reference_of_a_small_space_is_the_best_of_all_on_the_half_that_was_seen(terms, tmp_path, monkeypatch):
    monkeypatch.setattr(search_draws, "RANDOM_SUBNETS", 5)
    draws = Draws(terms, Setting(labels=30, unlabelled=40, effort=EFFORT, plan=PLAN, random=(6,)), tmp_path / "f")
    draws.make(1, 0)
    own, other = draws.halves(0)
    assert sorted([*own, *other]) == list(range(len(IMAGES)))
    within = [gates for gates in SPACE.enumerate() if COST(gates) <= LIMIT_MS]
    assert draws.found[REFERENCE][0] == [str(gates) for gates in within]
    worth = {gates: np.mean([right(gates, IMAGES[index]) for index in own]) for gates in within}
    best = max(within, key=lambda gates: (worth[gates], -COST(gates)))
    expected = np.mean([right(best, IMAGES[index]) for index in other])
    assert report(terms, draws)["reference_accuracy"] == pytest.approx(expected, abs=1e-4)
