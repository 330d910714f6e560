"""Timing, the latency model and its calibration, on clocks that the tests move themselves."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime import sense
from edge_runtime.additive import AdditiveCost
from edge_runtime.backends import KernelProfile, Kernels, SessionOptions, open_session
from edge_runtime.backends.base import random_inputs
from edge_runtime.backends.fake import FakeSession
from edge_runtime.bundle import Bundle, TensorSpec
from edge_runtime.errors import BackendError, UsageError
from edge_runtime.gates import GateGroup, Gates, GateSpace, is_in_8_bits
from edge_runtime.measure import (
    Candidate,
    Drift,
    LatencyModel,
    MemoryModel,
    calibrate,
    estimate_memory,
    measure,
    measure_candidates,
    measure_in_bursts,
)
from edge_runtime.measure.kernels import KernelTable
from edge_runtime.measure.latency import DRIFT_FRAMES
from edge_runtime.measure.timing import BURST
from edge_runtime.seeds import covering_vectors, random_gates
from tests.support.tiny import SPACE, tiny_bundle

INPUTS = (TensorSpec("image", "float32", (None, 3, 4, 4)),)
OUTPUTS = (TensorSpec("logits", "float32", (None, 4)),)
COST = AdditiveCost(SPACE, 1.0, ((0.5, 0.3, 0.1), (0.6, 0.4, 0.1, 0.5), (0.7, 0.2, 0.1)))
MIXED = GateSpace(
    (
        GateGroup("a", "choice", ("original", "skip", "merged"), (1, 1, 2)),
        GateGroup("b", "choice", ("original", "narrow", "skip")),
        GateGroup("c", "subset", ("m0", "m1", "m2")),
        GateGroup("d", "experts", ("e0", "e1")),
    )
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.nnf")


def fake(space: GateSpace = SPACE, cost: AdditiveCost = COST) -> FakeSession:
    return FakeSession(space, INPUTS, OUTPUTS, cost_ms=cost)


def test_measure_records_what_a_run_costs_and_keeps_every_sample() -> None:
    session = fake()
    vectors = [SPACE.default, SPACE.parse("2-2-2"), SPACE.parse("0-3-0")]
    found = measure(session, random_inputs(INPUTS, seed=0), vectors, runs=10, seed=0, clock_ns=session.now_ns)
    assert [m.gates for m in found] == vectors
    for measurement in found:
        assert len(measurement.latencies_ns) == 10
        assert measurement.p50_ms == pytest.approx(COST(measurement.gates))
        assert measurement.first_ns == pytest.approx(COST(measurement.gates) * 1e6)
        assert measurement.backend == "fake"
        assert measurement.warmups >= 3, "one run after each change of candidate is not recorded"


def test_candidates_are_interleaved_in_rotating_order() -> None:
    ran: list[Gates] = []

    def cost_ms(gates: Gates) -> float:
        ran.append(gates)
        return 1.0

    session = FakeSession(SPACE, INPUTS, OUTPUTS, cost_ms=cost_ms)
    vectors = [SPACE.default, SPACE.parse("1-1-1"), SPACE.parse("2-2-2")]
    measure(session, random_inputs(INPUTS, seed=0), vectors, runs=12, seed=3, clock_ns=session.now_ns)
    blocks = [gates for before, gates in zip([None, *ran[3:]], ran[3:], strict=False) if gates != before]
    firsts = blocks[::3]
    assert len(set(firsts)) == 3, f"each candidate leads a round: {list(map(str, blocks))}"


def test_each_burst_is_of_one_subnet_and_all_together_are_the_same_measurement() -> None:
    ran: list[Gates] = []

    def cost_ms(gates: Gates) -> float:
        ran.append(gates)
        return COST(gates)

    session = FakeSession(SPACE, INPUTS, OUTPUTS, cost_ms=cost_ms)
    vectors = [SPACE.default, SPACE.parse("1-1-1"), SPACE.parse("2-2-2")]
    one = random_inputs(INPUTS, seed=0)
    candidates = [Candidate(session, one, gates) for gates in vectors]
    bursts = measure_in_bursts(candidates, runs=10, seed=3, clock_ns=session.now_ns)
    sizes, found = [], None
    while found is None:
        ran.clear()
        try:
            next(bursts)
        except StopIteration as end:
            found = end.value
        else:
            assert len(set(ran)) == 1
            sizes.append(len(ran))
    assert max(sizes) <= BURST + 2
    assert len(sizes) == 3 * 3  # of each subnet 4, 4 and 2
    whole = measure(session, one, vectors, runs=10, seed=3, clock_ns=session.now_ns)
    assert [(m.gates, m.latencies_ns, m.warmups) for m in found] == [
        (m.gates, m.latencies_ns, m.warmups) for m in whole
    ]


def test_the_time_limit_ends_a_measurement_after_a_whole_round() -> None:
    session = fake()
    vectors = [SPACE.default, SPACE.parse("2-2-2")]
    found = measure(session, random_inputs(INPUTS, seed=0), vectors, seconds=0.05, seed=0, clock_ns=session.now_ns)
    assert 1 <= len(found[0].latencies_ns) == len(found[1].latencies_ns) < 100


def test_sessions_can_be_measured_beside_each_other() -> None:
    fast, slow = fake(), fake(cost=AdditiveCost(SPACE, 9.0, COST.entries))
    inputs = random_inputs(INPUTS, seed=0)
    candidates = [Candidate(fast, inputs, SPACE.default), Candidate(slow, inputs, SPACE.default)]
    first, second = measure_candidates(candidates, runs=5, seed=0, clock_ns=lambda: fast.now_ns() + slow.now_ns())
    assert second.p50_ms - first.p50_ms == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("vectors", "limits"),
    [([], {"runs": 1}), ([SPACE.default], {}), ([SPACE.default], {"runs": 0}), ([SPACE.default], {"seconds": 0.0})],
)
def test_a_measurement_without_an_end_or_a_subject_is_refused(vectors: list[Gates], limits: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        measure(fake(), random_inputs(INPUTS, seed=0), vectors, seed=0, **limits)  # type: ignore[arg-type]


def test_a_failing_run_is_not_swallowed() -> None:
    def cost_ms(gates: Gates) -> float:
        raise BackendError("out of order")

    session = FakeSession(SPACE, INPUTS, OUTPUTS, cost_ms=cost_ms)
    with pytest.raises(BackendError, match="out of order"):
        measure(session, random_inputs(INPUTS, seed=0), [SPACE.default], runs=1, seed=0)


sizes = st.lists(st.integers(1, 6), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_covering_vectors_show_every_alternative_in_few_vectors(counts: list[int]) -> None:
    space = GateSpace(
        tuple(GateGroup(f"g{i}", "choice", tuple(f"a{k}" for k in range(n))) for i, n in enumerate(counts))
    )
    vectors = covering_vectors(space)
    assert len(vectors) == max(counts)
    assert {(i, v) for gates in vectors for i, v in enumerate(gates.values)} == {
        (i, k) for i, n in enumerate(counts) for k in range(n)
    }


def test_covering_vectors_without_some_show_all_others() -> None:
    labels = ("original", "int8", "half", "half-int8")
    space = GateSpace(tuple(GateGroup(f"g{i}", "choice", labels[: 4 - i % 3]) for i in range(5)))
    vectors = covering_vectors(space, but=is_in_8_bits)
    assert {(i, v) for gates in vectors for i, v in enumerate(gates.values)} == {
        (i, k) for i, group in enumerate(space.groups) for k in (0, 2) if k < group.size
    }


def test_covering_vectors_show_windows_and_what_is_inside_them() -> None:
    for space in (SPACE, MIXED):
        seen = {(i, v) for gates in covering_vectors(space) for i, v in enumerate(gates.values) if gates.active[i]}
        wanted = {(i, k) for i, g in enumerate(space.groups) if g.kind == "choice" for k in range(g.size)}
        assert wanted <= seen


@pytest.mark.parametrize(
    ("space", "cost"),
    [
        (SPACE, COST),
        (MIXED, AdditiveCost(MIXED, 2.0, ((0.9, 0.1, 0.8), (0.7, 0.3, 0.0), (0.2, 0.4, 0.3), (0.5, 0.6)))),
    ],
)
def test_calibration_by_timing_finds_an_additive_machine(bundle: Bundle, space: GateSpace, cost: AdditiveCost) -> None:
    session = fake(space, cost)
    manifest = dataclasses.replace(bundle.manifest, space=space, prior=tuple((0.0,) * g.size for g in space.groups))
    model = calibrate(
        dataclasses.replace(bundle, manifest=manifest), session, SessionOptions(), seed=0, clock_ns=session.now_ns
    )
    assert model.method == "timing"
    assert model.p95_ratio == pytest.approx(1.0, abs=1e-6)
    errors = [abs(model.predict_ms(gates) / cost(gates) - 1) for gates in space.enumerate()]
    assert sum(errors) / len(errors) < 0.05


def test_a_burst_of_load_while_calibrating_is_not_taken_for_the_machine(bundle: Bundle) -> None:
    def ratio(burst: range) -> tuple[float, int]:
        count = itertools.count()

        def cost_ms(gates: Gates) -> float:
            number = next(count)
            return COST(gates) * (5.0 if number in burst and number % 8 == 0 else 1.0)

        session = FakeSession(SPACE, INPUTS, OUTPUTS, cost_ms=cost_ms)
        model = calibrate(bundle, session, SessionOptions(), seed=0, clock_ns=session.now_ns)
        return model.p95_ratio, next(count)

    calm, runs = ratio(range(0))
    disturbed, _ = ratio(range(runs - 250, runs))
    assert calm == pytest.approx(1.0, abs=1e-6)
    assert disturbed == pytest.approx(1.0, abs=1e-6)


def test_a_table_by_timing_never_predicts_less_than_nothing(bundle: Bundle) -> None:
    """Each unit alone seems to save two thirds here, all three together cannot save twice the whole."""
    session = FakeSession(SPACE, INPUTS, OUTPUTS, cost_ms=lambda gates: 3.0 if gates.is_default else 1.0)
    model = calibrate(bundle, session, SessionOptions(), seed=0, clock_ns=session.now_ns)
    assert min(model.predict_ms(gates) for gates in SPACE.enumerate()) > 0


def test_calibration_by_kernels_prices_every_alternative_and_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    options = SessionOptions()
    session = open_session(bundle, options)
    model = calibrate(bundle, session, options, seed=0, scratch=tmp_path, seconds=0.5)
    session.close()
    assert model.method == "kernels"
    assert model.cost.base > 0
    assert all(entry > 0 for row in model.cost.entries for entry in row)
    assert model.predict_p95_ms(SPACE.default) >= model.predict_ms(SPACE.default) > 0
    assert model.p95_cost(SPACE.default) == pytest.approx(model.predict_p95_ms(SPACE.default))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("machine", [(1.0, -3.0, 20.0), (0.8, -0.5, 5.0), (1.3, -4.0, 90.0)])
def test_a_few_quick_runs_tell_what_is_the_profilers_share(machine: tuple[float, float, float]) -> None:
    rng = random.Random(0)
    counts = [[rng.randrange(1, 8) for _ in range(4)] for _ in range(6)]
    times = [[count * rng.uniform(8, 60) for count in row] for row in counts]
    space = GateSpace(tuple(GateGroup(f"g{index}", "choice", tuple("abcd")) for index in range(6)))
    table = KernelTable(_table(space, 40.0, times), _table(space, 4, counts))

    def truth_us(gates: Gates) -> float:
        factor, per_kernel, per_run = machine
        return factor * table.us(gates) + per_kernel * table.count(gates) + per_run

    checks = [space.default, *(random_gates(space, rng) for _ in range(4))]
    cost = table.fitted([(gates, truth_us(gates) * rng.uniform(1.0, 1.01)) for gates in checks])
    others = [random_gates(space, rng) for _ in range(100)]
    errors = [abs(1e3 * cost(gates) / truth_us(gates) - 1) for gates in others]
    assert sum(errors) / len(errors) < 0.02
    assert max(errors) < 0.08


def _table(space: GateSpace, base: float, rows: Sequence[Sequence[float]]) -> AdditiveCost:
    return AdditiveCost(space, base, tuple(tuple(row) for row in rows))


def test_a_profile_that_cannot_be_kept_is_done_without(bundle: Bundle, tmp_path: Path) -> None:
    session = open_session(bundle)
    model = calibrate(bundle, session, SessionOptions(), seed=0, scratch=tmp_path / "missing", seconds=0.2)
    session.close()
    assert model.method == "timing"
    assert model.predict_ms(SPACE.default) > 0


TABLE = LatencyModel(COST, 1.2, "kernels", 0.02)


@pytest.mark.parametrize("factor", [0.6, 1.0, 2.5])
def test_the_drift_finds_how_much_slower_the_machine_became(factor: float) -> None:
    rng, drift, clock = random.Random(0), Drift(), itertools.count(step=0.1)
    subnets = list(SPACE.enumerate())
    drift.add(TABLE, SPACE.default, 1.0, next(clock))  # the clock of the first subnet begins
    for _ in range(4):
        next(clock)
    for _ in range(DRIFT_FRAMES - 1):
        drift.add(TABLE, SPACE.default, factor * TABLE.predict_ms(SPACE.default), next(clock))
    assert drift.factor is None, "too few frames say nothing"
    for number in range(300):
        gates = subnets[number // 100]
        drift.add(TABLE, gates, factor * TABLE.predict_ms(gates) * rng.lognormvariate(0, 0.05), next(clock))
    assert drift.factor == pytest.approx(factor, rel=0.04)
    drifted = TABLE.drifted(drift.factor)
    assert drifted.predict_ms(SPACE.default) == pytest.approx(drift.factor * TABLE.predict_ms(SPACE.default))


def test_one_long_interruption_is_not_drift() -> None:
    drift = Drift()
    for number in range(200):
        usual_ms = TABLE.predict_ms(SPACE.default)
        drift.add(TABLE, SPACE.default, usual_ms * (500.0 if number == 150 else 1.0), float(number))
    assert drift.factor == pytest.approx(1.0, abs=0.01)


def test_frames_just_after_a_swap_are_not_drift() -> None:
    """Until a subnet has a session of its own it is slower than the table says."""
    drift, clock = Drift(), itertools.count(step=0.01)
    for number in range(2000):
        gates = SPACE.default if number % 200 < 100 else SPACE.parse("1-1-1")
        slow = 2.0 if number % 100 < 40 else 1.0
        drift.add(TABLE, gates, slow * TABLE.predict_ms(gates), next(clock))
    assert drift.factor == pytest.approx(1.0, abs=0.01)


MEMORY = KernelProfile(
    vectors=(SPACE.default, SPACE.parse("2-3-0"), SPACE.parse("1-1-1"), SPACE.parse("2-2-2")),
    base=(Kernels(5.0, 2, 1000, 50),) * 4,
    groups=(
        (Kernels(9.0, 3, 100, 70), Kernels(9.0, 3, 200, 40), Kernels(9.0, 3, 300, 20)),
        (Kernels(1.0, 1, 10, 30), Kernels(9.0, 2, 400, 90), Kernels()),
        (Kernels(5.0, 3, 50, 60), Kernels(4.0, 3, 80, 40), Kernels(3.0, 3, 90, 20)),
        (Kernels(1.0, 1, 10, 30), Kernels(1.0, 0, 0, 0), Kernels(1.0, 0, 0, 0)),
    ),
    alone=True,
)


@pytest.mark.parametrize(("maps_weights", "weights"), [(True, 1000 + 10 + 400), (False, 0)])
def test_a_subnet_needs_its_weights_and_its_largest_moment(maps_weights: bool, weights: int) -> None:
    model = MemoryModel.of(SPACE, MEMORY, maps_weights=maps_weights)
    merged = SPACE.parse("2-3-0")  # the last group is covered: what it would take is not counted
    assert model.peak_live_bytes(merged) == 90
    assert model.subnet_bytes(merged) == weights + 2 * 90


def test_the_memory_of_a_real_process_is_predicted(bundle: Bundle, tmp_path: Path) -> None:
    session = open_session(bundle)
    session.run(random_inputs(session.inputs, seed=0), SPACE.default)
    told = {"process_bytes": sense.process_share_bytes(), "seed": 0}
    found = estimate_memory(bundle, session, SessionOptions(), **told, scratch=tmp_path)
    assert found is not None
    runtime_bytes, model = found
    live = model.peak_live_bytes(SPACE.default)
    assert model.subnet_bytes(SPACE.default) == live > 3 * 16 * 16 * 4, "the portable form has its weights already"
    assert runtime_bytes == told["process_bytes"] - live
    assert estimate_memory(bundle, session, SessionOptions(), **told, scratch=None) is None
    unknown = told | {"process_bytes": sense.Unknown("no /proc")}
    assert estimate_memory(bundle, session, SessionOptions(), **unknown, scratch=tmp_path) is None
    session.close()


def test_a_latency_model_survives_json() -> None:
    model = LatencyModel(COST, 1.2, "kernels", 0.02)
    assert LatencyModel.from_json(SPACE, json.loads(json.dumps(model.to_json()))) == model


@pytest.mark.parametrize(
    "change",
    [
        {"p95_ratio": 0.5},
        {"error": -1},
        {"method": "guess"},
        {"base_ms": "fast"},
        {"entries_ms": [[1.0]]},
        {"entries_ms": 3},
        {"p95_ratio": float("nan")},
        {"extra": 1},
    ],
)
def test_a_foreign_latency_model_is_refused(change: dict[str, object]) -> None:
    body = LatencyModel(COST, 1.2, "kernels", 0.02).to_json() | change
    with pytest.raises(UsageError):
        LatencyModel.from_json(SPACE, body)
