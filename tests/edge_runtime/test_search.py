import itertools
import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.additive import AdditiveCost, Plan, fastest
from edge_runtime.errors import BudgetError, UsageError
from edge_runtime.gates import GateGroup, GateSpace
from edge_runtime.objectives import Score
from edge_runtime.search import EvolutionSearch
from edge_runtime.seeds import near_budget_seeds
from tests.support.spaces import costs, spaces

small = spaces(max_groups=3)
priced = small.flatmap(lambda space: st.tuples(st.just(space), costs(space), costs(space, low=-4.0)))


def deep_space(groups=17, alternatives=5):
    """The size of a real supernet: about 1e12 subnets, a merged alternative in every third pair of units."""
    labels = tuple(f"a{number}" for number in range(alternatives))
    made = []
    for index in range(groups):
        if index % 3 == 0 and index + 1 < groups:
            made.append(GateGroup(f"u{index}", "choice", (*labels, "merged"), (*(1,) * alternatives, 2)))
        else:
            made.append(GateGroup(f"u{index}", "choice", labels))
    return GateSpace(tuple(made))


def deep_tables(space, seed):
    """Latencies, and damages that grow as an alternative gets faster."""
    rng = random.Random(seed)
    latencies, damages = [], []
    for group in space.groups:
        original = rng.uniform(1, 3)
        shares = [1.0, *(rng.uniform(0.05, 0.8) for _ in range(group.size - 1))]
        latencies.append(tuple(original * share * span for share, span in zip(shares, group.spans, strict=True)))
        damages.append(tuple((1 - share) ** 2 * rng.uniform(0.3, 1.7) for share in shares))
    return AdditiveCost(space, 1.0, tuple(latencies)), AdditiveCost.damage(space, damages)


def told(gates, quality, latency_ms):
    quality = min(1.0, max(0.0, quality))
    return Score(gates, quality, quality, quality, 100, latency_ms, None, False)


def run(search, quality, cost, asks=2000):
    """Drive a search to its end; every generation in a list."""
    generations = []
    for _ in range(asks):
        generations.append(search.ask())
        search.tell([told(gates, quality(gates), cost(gates)) for gates in generations[-1]])
        if search.done:
            return generations
    raise AssertionError("the search does not end")


# ---- AdditiveCost and Plan


def test_a_cost_is_the_base_and_the_entries_of_what_is_active():
    space = GateSpace(
        (
            GateGroup("u0", "choice", ("original", "merged"), (1, 2)),
            GateGroup("u1", "choice", ("original", "skip")),
            GateGroup("heads", "experts", ("cats", "dogs")),
        )
    )
    cost = AdditiveCost(space, 1, ((4, 5), (3, 0.5), (0.25, 0.125)))
    assert cost(space.default) == 1 + 4 + 3 + 0.25 + 0.125
    assert cost(space.parse("1-0-b01")) == 1 + 5 + 0.125
    prior = AdditiveCost.damage(space, ((0, 0.3), (0, 0.2), (0.5, 0.25)))
    assert prior(space.default) == 0
    assert prior(space.parse("0-1-b10")) == pytest.approx(0.45)


@pytest.mark.parametrize("entries", [((1.0,),), ((1.0, 2.0), (1.0,)), ((1.0, math.nan),), ((1.0, None),)])
def test_a_cost_table_must_fit_the_space(entries):
    with pytest.raises(UsageError):
        AdditiveCost(GateSpace((GateGroup("u0", "choice", ("a", "b")),)), 0.0, entries)


@given(priced)
def test_the_fastest_subnet_is_exact(case):
    space, cost, _ = case
    assert cost(fastest(cost)) == min(map(cost, space.enumerate()))


@given(priced, st.integers(1, 100))
def test_the_plan_is_exact_on_spaces_that_can_be_enumerated(case, quarters):
    space, cost, damage = case
    limit = quarters / 4
    plan = Plan(cost, damage, limit)
    within = [gates for gates in space.enumerate() if cost(gates) <= limit]
    assert plan.feasible == bool(within)
    if within:
        assert plan.fits(plan.best())
        assert damage(plan.best()) == min(map(damage, within))


@given(priced, st.integers(0, 2**32), st.sampled_from([0.01, 1.0, 1000.0]))
def test_every_draw_is_within_the_limit(case, seed, temperature):
    space, cost, damage = case
    limit = cost(fastest(cost)) + 1
    plan = Plan(cost, damage, limit)
    drawn = plan.draw(random.Random(seed), temperature)
    assert drawn.space == space
    assert cost(drawn) <= limit


def test_hot_draws_reach_every_subnet_within_the_limit():
    space = deep_space(4, 2)
    cost, damage = deep_tables(space, 0)
    limit = 0.7 * cost(space.default)
    plan, rng = Plan(cost, damage, limit), random.Random(0)
    assert {plan.draw(rng, 1e6) for _ in range(2000)} == {g for g in space.enumerate() if cost(g) <= limit}


def test_a_limit_of_exactly_the_fastest_is_met():
    space = deep_space()
    cost, damage = deep_tables(space, 1)
    gates = fastest(cost)
    assert Plan(cost, damage, cost(gates)).best() == gates
    assert not Plan(cost, damage, cost(gates) * 0.999).feasible


@pytest.mark.parametrize("seed", range(5))
def test_the_plan_beats_every_single_change_on_a_space_of_real_size(seed):
    space = deep_space()
    cost, damage = deep_tables(space, seed)
    limit = 0.5 * cost(space.default)
    best = Plan(cost, damage, limit).best()
    for (i, a), (j, b) in itertools.combinations(
        [(index, value) for index, group in enumerate(space.groups) for value in range(group.size)], 2
    ):
        other = best.replace(i, a).replace(j, b)
        assert cost(other) > limit or damage(other) >= damage(best) - 1e-9


# ---- near_budget_seeds


@given(priced, st.integers(1, 12), st.integers(0, 100), st.booleans())
def test_seeds_are_distinct_within_the_limit_and_best_first(case, count, seed, with_prior):
    space, cost, damage = case
    prior = damage if with_prior else None
    limit = cost(fastest(cost)) + 2
    seeds = near_budget_seeds(space, cost, prior, limit, count, seed)
    within = [gates for gates in space.enumerate() if cost(gates) <= limit]
    assert len(set(seeds)) == len(seeds) == min(count, len(within))
    assert set(seeds) <= set(within)
    if with_prior:
        assert damage(seeds[0]) == min(map(damage, within))
    else:
        assert cost(seeds[0]) == max(map(cost, within))
    assert seeds == near_budget_seeds(space, cost, prior, limit, count, seed)


@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
def test_seeds_lie_near_a_limit_that_binds(share):
    space = deep_space()
    cost, damage = deep_tables(space, 3)
    limit = share * cost(space.default)
    seeds = near_budget_seeds(space, cost, damage, limit, 24, 0)
    assert len(seeds) == 24
    assert all(cost(gates) <= limit for gates in seeds)
    assert cost(seeds[0]) >= 0.95 * limit
    assert statistics.median(map(cost, seeds)) >= 0.85 * limit


def test_the_full_subnet_is_the_first_seed_where_everything_fits():
    space = deep_space()
    cost, damage = deep_tables(space, 4)
    assert near_budget_seeds(space, cost, damage, 1000.0, 3, 0)[0] == space.default


# ---- EvolutionSearch


@settings(max_examples=50)
@given(priced, st.integers(1, 6), st.integers(1, 5), st.integers(0, 99), st.booleans())
def test_asks_are_new_within_the_limit_and_come_to_an_end(case, population, generations, seed, with_prior):
    space, cost, damage = case
    limit = cost(fastest(cost)) + 3
    search = EvolutionSearch(
        space,
        predict_ms=cost,
        limit_ms=limit,
        prior=damage if with_prior else None,
        seeds=[space.default, space.default],
        population=population,
        generations=generations,
        seed=seed,
    )
    asked = run(search, lambda gates: cost(gates) / 100, cost)
    flat = [gates for generation in asked for gates in generation]
    assert len(asked) <= generations
    assert all(len(generation) <= population for generation in asked)
    assert len(set(flat)) == len(flat)
    assert all(cost(gates) <= limit for gates in flat)
    assert search.ask() == []
    # A small space is not left while there is anything new in it.
    feasible = sum(cost(gates) <= limit for gates in space.enumerate())
    assert len(flat) == min(feasible, population * generations)


@settings(max_examples=50)
@given(priced, st.integers(0, 99), st.data())
def test_the_optimum_of_a_small_space_is_found(case, seed, data):
    space, cost, _ = case
    table = {gates: data.draw(st.integers(0, 50)) / 50 for gates in list(space.enumerate())[:40]}
    limit = cost(fastest(cost)) + 4
    search = EvolutionSearch(space, predict_ms=cost, limit_ms=limit, population=16, generations=2000, seed=seed)
    run(search, lambda gates: table.get(gates, 0.0), cost)
    best = max(table.get(gates, 0.0) for gates in space.enumerate() if cost(gates) <= limit)
    assert search.best(1)[0].quality == best


def searched(seed, generations=8, least_gain=0.0):
    space = deep_space()
    cost, damage = deep_tables(space, 7)
    rng = random.Random(11)
    # What the prior does not know: neighbours that work badly or well together, and its own errors.
    pairs = {(i, a, b): rng.gauss(0, 0.15) for i in range(16) for a in range(1, 6) for b in range(1, 6)}
    truth = AdditiveCost(space, 0.0, tuple(tuple(d * rng.lognormvariate(0, 1) for d in row) for row in damage.entries))

    def quality(gates):
        extra = sum(pairs.get((i, a, b), 0.0) for i, (a, b) in enumerate(itertools.pairwise(gates.values)))
        return 0.97 - 0.04 * (truth(gates) + extra)

    limit = 0.5 * cost(space.default)
    search = EvolutionSearch(
        space,
        predict_ms=cost,
        limit_ms=limit,
        prior=damage,
        generations=generations,
        least_gain=least_gain,
        seed=seed,
    )
    return run(search, quality, cost), search, quality, Plan(cost, damage, limit)


def test_the_same_seed_gives_the_same_asks():
    assert searched(5)[0] == searched(5)[0]
    assert searched(5)[0] != searched(6)[0]


def test_on_a_real_size_the_search_improves_on_the_prior_and_on_chance():
    gains, over_chance = [], []
    for seed in range(5):
        generations, search, quality, plan = searched(seed)
        found, rng = search.best(1)[0].quality, random.Random(seed)
        count = sum(map(len, generations))
        gains.append(found - quality(plan.best()))
        over_chance.append(found - max(quality(plan.draw(rng, 1e6)) for _ in range(count)))
        assert count == 8 * 24
        assert generations[0][0] == plan.best()
    assert min(gains) >= 0
    assert sum(gains) / 5 > 0.01
    assert min(over_chance) > 0.01


def test_a_search_that_stops_is_the_beginning_of_the_one_that_goes_on_and_loses_little():
    longer, whole, _, _ = searched(1, generations=24)
    shorter, stopped, _, _ = searched(1, generations=24, least_gain=0.005)
    assert 3 < len(shorter) < len(longer) == 24
    assert shorter[:-1] == longer[: len(shorter) - 1]
    assert shorter[-1] == []
    assert stopped.expected_gain < 0.005
    # It was expected to lose 0.5 % of the quality; the sums that it expects by leave out what neighbours do together.
    assert stopped.best(1)[0].quality > whole.best(1)[0].quality * (1 - 0.01)


def told_alike(quality, least_gain):
    space = deep_space()
    cost, damage = deep_tables(space, 7)
    limit = 0.5 * cost(space.default)
    search = EvolutionSearch(space, predict_ms=cost, limit_ms=limit, prior=damage, generations=6, least_gain=least_gain)
    return len([generation for generation in run(search, lambda gates: quality, cost) if generation])


def test_nothing_is_better_than_what_is_always_right():
    assert told_alike(1.0, least_gain=0.005) == 1
    assert told_alike(0.9, least_gain=0.005) > 1
    assert told_alike(0.0, least_gain=0.005) == 6
    assert told_alike(1.0, least_gain=0.0) == 6


def test_what_is_told_of_subnets_above_the_limit_ends_no_search():
    space = deep_space()
    cost, damage = deep_tables(space, 7)
    search = EvolutionSearch(
        space, predict_ms=cost, limit_ms=0.5 * cost(space.default), prior=damage, generations=2, least_gain=0.5
    )
    search.tell([told(space.default, 1.0, cost(space.default))])
    assert search.ask()


def test_given_seeds_are_asked_where_they_fit():
    space = deep_space()
    cost, damage = deep_tables(space, 7)
    limit, slow = 0.5 * cost(space.default), space.default
    search = EvolutionSearch(
        space, predict_ms=cost, limit_ms=limit, prior=damage, seeds=[slow, fastest(cost)], generations=1
    )
    first = search.ask()
    assert fastest(cost) in first
    assert slow not in first


def test_what_the_prior_expects_too_much_damage_of_is_never_asked():
    space = deep_space()
    cost, damage = deep_tables(space, 7)
    limit = 0.5 * cost(space.default)
    most = 1.3 * damage(Plan(cost, damage, limit).best())
    search = EvolutionSearch(
        space, predict_ms=cost, limit_ms=limit, prior=damage, most_damage=most, seeds=[fastest(cost)], generations=6
    )
    asked = run(search, lambda gates: 0.5, cost)  # images that tell nothing
    assert sum(map(len, asked)) > 24
    assert max(damage(gates) for generation in asked for gates in generation) <= most


def test_best_puts_what_is_within_the_limit_first():
    space = deep_space(3, 2)
    cost, _ = deep_tables(space, 0)
    a, b, c, d = itertools.islice(space.enumerate(), 4)
    search = EvolutionSearch(space, predict_ms=cost, limit_ms=10.0, generations=1)
    search.tell([told(a, 0.9, 11.0), told(b, 0.7, 9.0), told(c, 0.7, 8.0), told(d, 0.6, 1.0), told(b, 0.8, 9.0)])
    assert [score.gates for score in search.best(9)] == [b, c, d, a]
    assert search.best(1)[0].quality == 0.8


@given(priced)
def test_an_infeasible_budget_names_the_fastest_subnet_and_its_latency(case):
    space, cost, damage = case
    limit = cost(fastest(cost)) / 2
    with pytest.raises(BudgetError) as caught:
        EvolutionSearch(space, predict_ms=cost, limit_ms=limit, prior=damage)
    with pytest.raises(BudgetError):
        near_budget_seeds(space, cost, None, limit, 4, 0)
    assert str(fastest(cost)) in str(caught.value)
    assert f"{cost(fastest(cost)):.3g} ms" in str(caught.value)
    assert f"{limit:.3g} ms" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"limit_ms": 0.0},
        {"limit_ms": math.nan},
        {"population": 0},
        {"generations": 0},
        {"seed": -1},
        {"least_gain": -0.1},
        {"least_gain": 1.0},
    ],
)
def test_arguments_outside_their_range_are_refused(change):
    space = deep_space(2, 2)
    cost, _ = deep_tables(space, 0)
    with pytest.raises(UsageError):
        EvolutionSearch(space, **({"predict_ms": cost, "limit_ms": 9.0, "generations": 1} | change))


def test_gates_and_tables_of_another_space_are_refused():
    space, other = deep_space(2, 2), deep_space(3, 2)
    cost, _ = deep_tables(space, 0)
    foreign, _ = deep_tables(other, 0)
    for call in (
        lambda: EvolutionSearch(space, predict_ms=foreign, limit_ms=9.0),
        lambda: EvolutionSearch(space, predict_ms=cost, limit_ms=9.0, prior=foreign),
        lambda: EvolutionSearch(space, predict_ms=cost, limit_ms=9.0, seeds=[other.default]),
        lambda: EvolutionSearch(space, predict_ms=cost, limit_ms=9.0).tell([told(other.default, 0.5, 1.0)]),
    ):
        with pytest.raises(UsageError, match=r"(another|different) gate space"):
            call()
