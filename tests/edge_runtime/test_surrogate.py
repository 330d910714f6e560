"""Damages corrected by scores: what is learned, how sure it is, and that a search overcomes a wrong prior."""

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.additive import AdditiveCost, Plan
from edge_runtime.gates import GateGroup, GateSpace
from edge_runtime.objectives import Score
from edge_runtime.search import EvolutionSearch
from edge_runtime.seeds import random_gates
from edge_runtime.surrogate import LEAST_SCORES, DamageModel
from tests.support.spaces import costs, spaces

SPACE = GateSpace(
    (
        *(GateGroup(f"u{index}", "choice", ("original", "half", "quarter")) for index in range(5)),
        GateGroup("w", "choice", ("original", "half", "merged"), (1, 1, 2)),
        GateGroup("v", "choice", ("original", "half")),
        GateGroup("m", "subset", tuple(f"m{index}" for index in range(4))),
    )
)


def table(seed: int, *, low: float = 0.0, high: float = 0.2) -> AdditiveCost:
    """Damages of each alternative of `SPACE` and of each module that is off."""
    rng = random.Random(seed)
    rows = []
    for group in SPACE.groups:
        row = [rng.uniform(low, high) for _ in range(group.size)]
        rows.append(row if group.kind != "choice" else [0.0, *row[1:]])
    return AdditiveCost.damage(SPACE, rows)


def scored(gates, quality: float, samples: int = 1000) -> Score:
    return Score(gates, quality, 0.0, 1.0, samples, 1.0, None, False)


def drawn(truth: AdditiveCost, count: int, seed: int = 0, samples: int = 10**6) -> list[Score]:
    """Scores without noise of random subnets under a truth."""
    rng = random.Random(seed)
    subnets = list(dict.fromkeys(random_gates(SPACE, rng) for _ in range(count)))
    return [scored(gates, math.exp(-truth(gates)), samples) for gates in subnets]


def off(model: AdditiveCost, truth: AdditiveCost) -> float:
    """Spread of the difference between two damages over many subnets: a constant beside them does not matter."""
    rng = random.Random(99)
    subnets = [random_gates(SPACE, rng) for _ in range(200)]
    return statistics.pstdev(model(gates) - truth(gates) for gates in subnets)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_scores_correct_a_prior_that_is_wrong_whatever_its_unit(unit: float) -> None:
    truth, prior = table(1), table(2)
    few, many = (DamageModel(prior.scaled(unit), drawn(truth, count)).mean() for count in (8, 150))
    assert off(many, truth) < 0.25 * off(prior, truth)
    assert off(many, truth) < off(few, truth)


def test_a_right_prior_needs_few_scores() -> None:
    truth = table(1)
    model = DamageModel(truth.scaled(7.0), drawn(truth, 12)).mean()
    assert off(model, truth) < 0.3 * off(DamageModel(table(2), drawn(truth, 12)).mean(), truth)


def test_draws_spread_around_the_mean_and_less_so_the_more_is_known() -> None:
    truth, prior, rng = table(1), table(2), random.Random(0)
    spreads = []
    for count in (8, 150):
        model = DamageModel(prior, drawn(truth, count, samples=500))
        draws = [model.draw(rng) for _ in range(200)]
        spreads.append(statistics.mean(off(draw, model.mean()) for draw in draws))
        middle = [statistics.fmean(draw.entries[0][place] for draw in draws) for place in (1, 2)]
        wide = max(statistics.pstdev(draw.entries[0][place] for draw in draws) for place in (1, 2))
        assert middle == pytest.approx(model.mean().entries[0][1:], abs=4 * wide / math.sqrt(200))
    assert 0 < spreads[1] < 0.6 * spreads[0]


def test_the_same_generator_gives_the_same_draw() -> None:
    model = DamageModel(table(2), drawn(table(1), 20))
    assert model.draw(random.Random(5)) == model.draw(random.Random(5)) != model.draw(random.Random(6))


@settings(deadline=None)
@given(
    spaces(max_groups=4).flatmap(lambda space: st.tuples(st.just(space), costs(space, low=-4.0))),
    st.integers(0, 999),
    st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=LEAST_SCORES, max_size=12),
)
def test_whatever_was_scored_the_damages_are_finite(case, seed: int, qualities: list[float]) -> None:
    space, prior = case
    rng = random.Random(seed)
    scores = [scored(random_gates(space, rng), quality, 1 + rng.randrange(50)) for quality in qualities]
    model = DamageModel(prior, scores)  # a cost refuses what is not finite
    for cost in (model.mean(), model.draw(rng)):
        assert Plan(prior, cost, math.inf).best().space == space


def test_a_search_overcomes_a_prior_that_is_the_wrong_way_round() -> None:
    assert statistics.fmean(_share_made_good(seed) for seed in range(8)) > 0.9


def _share_made_good(seed: int) -> float:
    """Of what the plan of a reversed prior loses against the best subnet, what a search of 64 subnets makes good."""
    truth = table(seed)
    highest = max(max(row) for row in truth.entries)
    rows = [
        [highest - entry if place else 0.0 for place, entry in enumerate(row)] if group.kind == "choice" else row
        for group, row in zip(SPACE.groups, truth.entries, strict=True)
    ]
    wrong = AdditiveCost(SPACE, truth.base, tuple(tuple(row) for row in rows))
    latency = AdditiveCost(
        SPACE, 1.0, tuple(tuple(1.0 / (1 + place) for place in range(group.size)) for group in SPACE.groups)
    )
    limit = 0.7 * latency(SPACE.default)
    search = EvolutionSearch(SPACE, predict_ms=latency, limit_ms=limit, prior=wrong, population=8, generations=8)
    while not search.done:
        search.tell([scored(gates, math.exp(-truth(gates))) for gates in search.ask()])
    best, worst = (truth(Plan(latency, damage, limit).best()) for damage in (truth, wrong))
    return (worst - truth(search.best(1)[0].gates)) / (worst - best)


@pytest.mark.parametrize("prior", [table(1), table(2)], ids=["right prior", "wrong prior"])
def test_likely_qualities_are_nearer_the_truth_than_what_few_images_say(prior: AdditiveCost) -> None:
    truth, rng = table(1), random.Random(3)
    subnets = list(dict.fromkeys(random_gates(SPACE, rng) for _ in range(100)))
    true = {gates: math.exp(-truth(gates)) for gates in subnets}
    scores = [
        scored(gates, sum(rng.random() < true[gates] for _ in range(samples)) / samples, samples)
        for gates, samples in zip(subnets, [32] * 80 + [128] * 20, strict=True)
    ]
    likely = DamageModel(prior, scores).qualities()
    raw_error, error = (
        statistics.fmean((found - true[gates]) ** 2 for gates, found in pairs)
        for pairs in ([(score.gates, score.quality) for score in scores], likely.items())
    )
    assert error < 0.5 * raw_error


def test_what_many_images_say_of_a_subnet_is_believed() -> None:
    truth = table(1)
    scores = drawn(truth, 60)
    odd = scored(scores[0].gates, 0.3 * scores[0].quality, 10**6)
    assert DamageModel(truth, [odd, *scores[1:]]).qualities()[odd.gates] == pytest.approx(odd.quality, rel=0.02)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("odd", [1e-9, 1e9, 1e30, 1e200])
def test_one_odd_entry_of_a_prior_does_no_harm(odd: float, seed: int) -> None:
    rng = random.Random(seed)
    rows = [[0.0, *([0.1] * (group.size - 1))] if group.kind == "choice" else [0.1] * 4 for group in SPACE.groups]
    rows[2][1] = odd
    scores = [scored(random_gates(SPACE, rng), rng.choice([0.0, 0.3, 0.9]), 32) for _ in range(12)]
    model = DamageModel(AdditiveCost.damage(SPACE, rows), scores)
    assert all(math.isfinite(quality) for quality in model.qualities().values())
    assert model.draw(rng).space == SPACE


@pytest.mark.parametrize("quality", [0.0, 31 / 32, 1.0])
def test_scores_that_are_all_the_same_leave_the_prior_its_say(quality: float) -> None:
    prior = table(2)
    subnets = [score.gates for score in drawn(table(1), 16)]
    mean = DamageModel(prior, [scored(gates, quality, 32) for gates in subnets]).mean()
    ranked = sorted(subnets, key=prior)
    assert statistics.fmean(map(mean, ranked[:4])) < statistics.fmean(map(mean, ranked[-4:]))


def test_few_images_that_are_all_right_are_not_certain() -> None:
    scores = drawn(table(1), 40, samples=32)
    lucky = scored(scores[0].gates, 1.0, 32)
    assert DamageModel(table(1), [lucky, *scores[1:]]).qualities()[lucky.gates] < 0.9


def test_other_images_are_no_merit_of_the_subnets_that_saw_them() -> None:
    truth, prior = table(1), table(1).scaled(3.0)
    scores = drawn(truth, 60)
    easier = [
        scored(s.gates, s.quality * (1.0 if place % 2 else 0.5), 32 if place % 2 else 96)
        for place, s in enumerate(scores)
    ]
    assert off(DamageModel(prior, easier).mean(), truth) < 0.02
