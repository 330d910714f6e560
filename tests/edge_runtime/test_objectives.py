import dataclasses
import itertools
import json
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import UsageError
from edge_runtime.gates import GateGroup, GateSpace
from edge_runtime.objectives import MIB, RUNS_NEEDED, Budget, Frontier, Measurement, Score, percentile, upper_rank

SPACE = GateSpace(
    (
        GateGroup("u0", "choice", ("original", "half", "merged"), (1, 1, 2)),
        GateGroup("u1", "choice", ("original", "half", "skip")),
        GateGroup("heads", "experts", ("cats", "dogs")),
    )
)
SUBNETS = list(SPACE.enumerate())


def score(index=0, quality=0.5, latency_ms=10.0, samples=100, measured=True, peak_bytes=None):
    return Score(SUBNETS[index], quality, quality, quality, samples, latency_ms, peak_bytes, measured)


def measurement(latencies_ns):
    return Measurement(
        SPACE.default, tuple(latencies_ns), 3, 9_000_000, 2, "fake", 50 * MIB, "2026-11-22T12:25:00+00:00"
    )


@st.composite
def scores(draw):
    # Few distinct values, so that ties and repeated subnets are common.
    quality = draw(st.integers(0, 4)) / 4
    low, high = draw(st.sampled_from([(quality, quality), (0.0, 1.0)]))
    return Score(
        draw(st.sampled_from(SUBNETS)),
        quality,
        low,
        high,
        draw(st.integers(0, 2)),
        draw(st.integers(1, 5)) / 2,
        draw(st.sampled_from([None, MIB])),
        draw(st.booleans()),
    )


# ---- percentiles


@given(st.lists(st.integers(0, 100), min_size=1), st.sampled_from([0.1, 50, 90, 95, 99, 99.9, 100]))
def test_a_percentile_is_the_smallest_value_that_covers_its_share(values, q):
    found = percentile(sorted(values), q)
    share = Fraction(str(q)) / 100
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1], 0), ([1], 101), ([1], math.nan)])
def test_a_percentile_that_cannot_be_meant_is_refused(values, q):
    with pytest.raises(UsageError):
        percentile(values, q)


@pytest.mark.parametrize(("count", "q"), [(11, 50), (64, 90), (130, 95), (200, 95), (459, 99), (662, 99), (3000, 99)])
def test_the_upper_rank_is_the_smallest_with_99_percent_confidence(count, q):
    share = Fraction(q, 100)

    def risk(rank):
        terms = (math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(rank, count + 1))
        return float(sum(terms))

    rank = upper_rank(count, q)
    assert risk(rank) <= 0.01 < risk(rank - 1)


@pytest.mark.parametrize(("q", "needed"), RUNS_NEEDED.items())
def test_a_percentile_needs_runs_enough_to_discard_one(q, needed):
    assert upper_rank(needed, q) == needed - 1
    assert upper_rank(needed - 1, q) in (None, needed - 1)
    made = measurement(range(needed))
    assert made.percentile_ms(q) == percentile(range(needed), q) / 1e6
    assert made.upper_percentile_ms(q) == (needed - 2) / 1e6
    assert measurement(range(needed - 1)).percentile_ms(q) is None


def test_too_few_runs_have_no_upper_bound_and_long_runs_do_not_underflow():
    assert upper_rank(458, 99) is None
    assert measurement([5] * 43).upper_percentile_ms(90) is None
    assert 50_000 < upper_rank(100_000, 50) < 50_500
    with pytest.raises(UsageError):
        upper_rank(10, 100)


# ---- Budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("33", Budget(latency_ms=33)),
        (" 33.5 ms", Budget(latency_ms=33.5)),
        ("60%", Budget(fraction=0.6)),
        ("120 %", Budget(fraction=1.2)),
    ],
)
def test_budgets_as_people_type_them(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "fast", "-3", "0", "0%", "1e3", "33s", "nan", "inf", "3 3", "9" * 5000])
def test_a_budget_that_cannot_be_meant_is_refused(text):
    with pytest.raises(UsageError):
        Budget.parse(text)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "33", 10**400, None])
@pytest.mark.parametrize("field", ["latency_ms", "memory_mib", "fraction", "energy_mj"])
def test_a_limit_is_a_finite_number_above_zero(field, value):
    if value is None:
        assert Budget(**{field: value}) == Budget()
        return
    with pytest.raises(UsageError, match=field):
        Budget(**{field: value})


def test_latency_and_fraction_exclude_each_other():
    with pytest.raises(UsageError, match="not both"):
        Budget(latency_ms=3, fraction=0.5)


def test_limits_in_the_units_they_are_compared_in():
    assert Budget(fraction=0.6).limit_ms(50) == 30
    assert Budget(latency_ms=33).limit_ms(50) == 33
    assert Budget(memory_mib=2).limit_ms(50) == math.inf
    assert Budget(memory_mib=2).memory_bytes == 2 * 1024 * 1024
    assert Budget().memory_bytes == math.inf
    assert Budget(energy_mj=60).limit_ms(50, 120) == 25
    assert Budget(energy_mj=60).limit_ms(50) == math.inf
    assert Budget(latency_ms=20, energy_mj=60).limit_ms(50, 120) == 20
    assert Budget(fraction=0.6, energy_mj=60).limit_ms(50, 120) == 25
    assert [str(Budget(latency_ms=33, memory_mib=300, energy_mj=7.5)), str(Budget(fraction=0.6)), str(Budget())] == [
        "33 ms, 300 MiB, 7.5 mJ",
        "60% of the full subnet",
        "no limit",
    ]


# ---- Measurement


def test_raw_samples_are_kept_in_order():
    made = measurement([3_000_000, 1_000_000, 2_000_000])
    assert made.latencies_ns == (3_000_000, 1_000_000, 2_000_000)
    assert (made.mean_ms, made.p50_ms, made.p95_ms) == (2, 2, 3)
    with pytest.raises(UsageError, match="not offered"):
        made.percentile_ms(42)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latencies_ns", ()),
        ("latencies_ns", (1.5,)),
        ("latencies_ns", (-1,)),
        ("latencies_ns", (True,)),
        ("warmups", -1),
        ("first_ns", None),
        ("threads", 0),
        ("backend", ""),
        ("peak_bytes", 2**70),
        ("taken_at", "yesterday"),
        ("taken_at", 7),
    ],
)
def test_a_measurement_cannot_be_built_invalid(field, value):
    with pytest.raises(UsageError):
        dataclasses.replace(measurement([1]), **{field: value})


def test_numpy_numbers_become_plain_ones():
    made = measurement(np.array([5, 6], dtype=np.int64))
    assert [type(value) for value in made.latencies_ns] == [int, int]
    made = score(quality=np.float32(0.5), latency_ms=np.float64(2))
    assert (type(made.quality), type(made.latency_ms)) == (float, float)


# ---- Score


@pytest.mark.parametrize(
    "change",
    [
        {"quality": 1.1},
        {"quality": math.nan},
        {"low": 0.6},
        {"high": 0.4},
        {"samples": -1},
        {"latency_ms": 0},
        {"latency_ms": math.inf},
        {"measured": 1},
        {"peak_bytes": -1},
    ],
)
def test_a_score_cannot_be_built_invalid(change):
    with pytest.raises(UsageError):
        dataclasses.replace(score(), **change)


@given(scores(), scores(), scores())
def test_dominance_is_a_strict_partial_order(a, b, c):
    assert not a.dominates(a)
    assert not (a.dominates(b) and b.dominates(a))
    if a.dominates(b) and b.dominates(c):
        assert a.dominates(c)


# ---- Frontier


@given(st.lists(scores(), min_size=1, max_size=6), st.randoms())
def test_a_frontier_does_not_depend_on_the_order_of_its_scores(found, random):
    shuffled = list(found)
    random.shuffle(shuffled)
    assert Frontier.of(found) == Frontier.of(shuffled)


@given(st.lists(scores(), min_size=1, max_size=8))
def test_a_frontier_holds_the_non_dominated_and_nothing_else(found):
    frontier = Frontier.of(found)
    assert Frontier.of(frontier.scores) == frontier
    for a, b in itertools.permutations(frontier.scores, 2):
        assert not a.dominates(b)
    # What counts of each subnet is covered by something on the frontier that is as fast and as good.
    best_founded = {}
    for made in found:
        best_founded.setdefault(made.gates, []).append(made)
    for made in best_founded.values():
        founded = max((one.measured, one.samples) for one in made)
        candidates = [one for one in made if (one.measured, one.samples) == founded]
        assert any(
            kept.latency_ms <= one.latency_ms and kept.quality >= one.quality
            for one in candidates
            for kept in frontier.scores
        )


@given(st.lists(scores(), min_size=1, max_size=8), st.integers(0, 12))
def test_best_is_the_highest_quality_within_the_limit(found, halves):
    frontier, limit = Frontier.of(found), halves / 4
    within = [made for made in frontier.scores if made.latency_ms <= limit]
    assert frontier.best(limit) == max(within, key=lambda made: made.quality, default=None)
    assert frontier.fastest == min(frontier.scores, key=lambda made: made.latency_ms)
    assert frontier.highest == frontier.best(math.inf)


def test_a_measured_score_outweighs_a_predicted_one():
    predicted, measured = score(quality=0.9, latency_ms=1, measured=False), score(quality=0.8, latency_ms=2)
    assert Frontier.of([predicted, measured]).scores == (measured,)
    more = score(quality=0.7, latency_ms=3, samples=500)
    assert Frontier.of([more, measured]).scores == (more,)


def test_a_frontier_cannot_be_built_invalid():
    with pytest.raises(UsageError, match="no subnets"):
        Frontier.of([])
    with pytest.raises(UsageError, match="out of order"):
        Frontier((score(0, 0.9, 10), score(1, 0.8, 12)))
    other = GateSpace((GateGroup("v", "choice", ("a",)),)).default
    with pytest.raises(UsageError, match="different gate spaces"):
        Frontier((score(0, 0.5, 5), dataclasses.replace(score(0, 0.9, 10), gates=other)))


# ---- JSON


def through_json(body):
    return json.loads(json.dumps(body, allow_nan=False))


@given(scores())
def test_scores_and_frontiers_round_trip_through_json(made):
    assert Score.from_json(SPACE, through_json(made.to_json())) == made
    frontier = Frontier.of([made, score(3, 1.0, 99.0)])
    assert Frontier.from_json(SPACE, through_json(frontier.to_json())) == frontier


def test_budgets_and_measurements_round_trip_through_json():
    for budget in (Budget(), Budget(latency_ms=33, memory_mib=300), Budget(fraction=0.6)):
        assert Budget.from_json(through_json(budget.to_json())) == budget
    made = measurement([5, 4, 6])
    assert Measurement.from_json(SPACE, through_json(made.to_json())) == made
    zulu = through_json(made.to_json()) | {"taken_at": "2026-11-22T12:25:00Z", "peak_bytes": None}
    assert Measurement.from_json(SPACE, zulu).peak_bytes is None


hostile = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
READERS = {
    "budget": (Budget.from_json, {"latency_ms": 3.0, "memory_mib": 4.0}),
    "measurement": (lambda body: Measurement.from_json(SPACE, body), measurement([1, 2]).to_json()),
    "score": (lambda body: Score.from_json(SPACE, body), score().to_json()),
    "frontier": (lambda body: Frontier.from_json(SPACE, [body]), score().to_json()),
}


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data(), value=hostile)
def test_hostile_json_is_a_value_or_a_usage_error(kind, data, value):
    read, valid = READERS[kind]
    key = data.draw(st.sampled_from([*valid, "unknown"]))
    without = {name: entry for name, entry in valid.items() if name != key}
    for body in (value, without, valid | {key: value}, valid | {key: [value]}):
        try:
            read(body)
        except UsageError as error:
            message = str(error)
        else:
            message = ""
        assert len(message) < 600


def test_importing_the_values_loads_no_numpy():
    code = "import sys; import edge_runtime.policy, edge_runtime.search; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
