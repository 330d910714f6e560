"""Subnets in parts: bit for bit what they are whole, computed once where they begin alike, in bounded memory."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime import sense
from edge_runtime.backends import Session, SessionOptions, compile_bundle, open_compiled, open_session
from edge_runtime.backends.features import FeatureCache
from edge_runtime.backends.onnx.parts import PreparedParts, open_parts
from edge_runtime.backends.onnx.passes import cut_in_parts
from edge_runtime.backends.onnx.prepared import PreparedGraph
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, GateError, InputError, UsageError
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import GateGroup, GateSpace
from edge_runtime.model import EdgeModel, jobs
from edge_runtime.objectives import Budget
from edge_runtime.seeds import random_gates
from tests.support.modular import modular_bundle
from tests.support.tiny import SPACE, tiny_bundle

DEMO = Path(__file__).resolve().parents[2] / "edge_runtime" / "assets" / "demo.nnf"
OPTIONS = SessionOptions(threads=1)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


def opened(bundle: Bundle, folder: Path) -> Any:
    compile_bundle(bundle, OPTIONS, folder, key="k")
    return open_compiled(bundle, OPTIONS, folder, key="k")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = opened(tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny"), tmp_path_factory.mktemp("compiled"))
    yield session
    session.close()


@pytest.fixture(scope="module")
def demo_graph(tmp_path_factory: pytest.TempPathFactory) -> PreparedGraph:
    bundle, folder = Bundle.read(DEMO), tmp_path_factory.mktemp("demo")
    compile_bundle(bundle, OPTIONS, folder, key="k")
    return PreparedGraph(folder, bundle.manifest, OPTIONS)


def image(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).standard_normal((batch, 3, 16, 16)).astype(np.float32)}


# ---- the cache


@given(
    max_bytes=st.integers(0, 4000),
    uses=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(1, 200)), max_size=60),
)
def test_the_cache_never_holds_more_than_it_may_and_gives_only_what_was_put(
    max_bytes: int, uses: list[tuple[int, int, int]]
) -> None:
    cache, latest = FeatureCache(max_bytes), {}
    for batch, beginning, size in uses:
        value = np.full(size, len(latest), np.float64)
        cache.of(0, batch).put((0, beginning), value)
        latest[batch, beginning] = value
        assert 0 <= cache.bytes <= max_bytes
        if value.nbytes <= max_bytes:
            assert cache.of(0, batch).get((0, beginning)) is value
        for (other, key), known in latest.items():
            found = cache.of(0, other).get((0, key))
            assert found is None or found is known
    held = {id(found) for key in latest if (found := cache.get(((0, key[0]), (0, key[1])))) is not None}
    assert cache.bytes == sum(value.nbytes for value in latest.values() if id(value) in held)


def test_what_was_used_last_stays() -> None:
    cache = FeatureCache(3 * 80)
    features = cache.of(0, 8)
    for number in range(3):
        features.put((number,), np.zeros(10))
    assert features.get((0,)) is not None
    features.put((3,), np.zeros(10))
    assert [features.get((number,)) is not None for number in range(4)] == [True, False, True, True]
    assert cache.of(0, 7).get((0,)) is None


def test_memory_below_zero_cannot_be_meant() -> None:
    with pytest.raises(UsageError):
        FeatureCache(-1)


def test_nothing_is_shared_where_memory_is_short_or_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, budget, shares in (
        (jobs.LEAST_FREE_BYTES, Budget(latency_ms=3.0), True),
        (sense.Unknown("no /proc"), Budget(), True),
        (jobs.LEAST_FREE_BYTES - 1, Budget(), False),
        (1 << 40, Budget(memory_mib=1e6), False),
    ):
        monkeypatch.setattr(sense, "memory_available_bytes", lambda free=free: free)
        features = jobs._features(budget)
        assert (features is not None) == shares
        assert features is None or features.max_bytes == jobs.MOST_FEATURE_BYTES


def test_a_search_of_a_model_shares_until_finalists_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, run = [], PreparedParts.run

    def counted(self: PreparedParts, inputs: Any, gates: Any, features: Any) -> Any:
        asked.append(gates)
        return run(self, inputs, gates, features)

    monkeypatch.setattr(PreparedParts, "run", counted)
    tiny_bundle(tmp_path / "tiny.nnf")
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    with EdgeModel.load(tmp_path / "tiny.nnf", state_dir=tmp_path / "state", threads=1) as model:
        jobs_made, make = [], model._searches._jobs.make
        monkeypatch.setattr(
            model._searches._jobs, "make", lambda *a, **k: jobs_made.append(make(*a, **k)) or jobs_made[-1]
        )
        model.adapt(images, budget=Budget(latency_ms=1000.0), wait=True)
        assert len(set(asked)) > 3
        evaluator = jobs_made[0].evaluator
        assert evaluator._parts is None
        assert evaluator._features is None


# ---- the parts


@pytest.mark.parametrize("max_bytes", [0, 20_000, 1 << 24])
def test_every_subnet_in_parts_answers_bit_for_bit_as_whole(tiny: Session, max_bytes: int) -> None:
    parts, cache = tiny.in_parts(), FeatureCache(max_bytes)
    assert parts is not None
    subnets = [gates for gates in SPACE.enumerate() if not gates.is_default]
    random.Random(0).shuffle(subnets)
    for batch in (3, 1):
        for gates in [*subnets, *subnets[:7]]:
            found = parts.run(image(batch, batch), gates, cache.of(0, batch))["logits"]
            np.testing.assert_array_equal(found, tiny.run(image(batch, batch), gates)["logits"])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_bundled_network_in_parts_answers_bit_for_bit_as_whole(demo_graph: PreparedGraph, seed: int) -> None:
    manifest, rng = Bundle.read(DEMO).manifest, random.Random(seed)
    parts = open_parts(demo_graph, manifest, lambda: None)
    assert parts is not None
    spec = manifest.inputs[0]
    inputs = {spec.name: np.random.default_rng(seed).standard_normal((2, *spec.shape[1:])).astype(np.float32)}
    features = FeatureCache(1 << 24).of(0, 2)
    for gates in (random_gates(manifest.space, rng) for _ in range(4)):
        found = next(iter(parts.run(inputs, gates, features).values()))
        wanted = demo_graph.gated.run(None, demo_graph.feeds(inputs, gates, whole=False))[0]
        np.testing.assert_array_equal(found, wanted)


def test_parts_that_answer_otherwise_are_not_used(tiny: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: PreparedParts, *arguments: Any) -> Any:
        return {name: values + 1e-6 for name, values in run(self, *arguments).items()}

    run = PreparedParts.run
    monkeypatch.setattr(PreparedParts, "run", wrong)
    assert tiny.in_parts() is None


def test_what_two_subnets_begin_with_runs_once(tiny: Session) -> None:
    parts, counted = tiny.in_parts(), Counted()
    assert parts is not None
    first, alike, other = (SPACE.parse(text) for text in ("1-2-0", "1-0-2", "2-1-0"))  # one cut, behind unit0
    for gates, puts, hits in ((first, 1, 0), (alike, 0, 1), (first, 0, 1), (other, 1, 0)):
        counted.puts = counted.hits = 0
        parts.run(image(2), gates, counted)
        assert (counted.puts, counted.hits) == (puts, hits), gates


class Counted:
    """Features that are kept for good, and counted."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}
        self.puts = self.hits = 0

    def get(self, beginning: Any) -> Any:
        found = self.kept.get(beginning)
        self.hits += found is not None
        return found

    def put(self, beginning: Any, value: Any) -> None:
        assert beginning not in self.kept, "it was known"
        self.puts += 1
        self.kept[beginning] = value


def test_each_part_depends_on_the_decisions_before_its_end(demo_graph: PreparedGraph) -> None:
    found = demo_graph.parts()
    assert found is not None
    parts, decisions = found
    assert [bool(part.taken) for part in parts] == [False, True, True]
    assert [bool(part.given) for part in parts] == [True, True, False]
    for earlier, later in itertools.pairwise(parts):
        assert later.taken == earlier.given
        assert set(earlier.bits) < set(later.bits)
        behind = {decisions.entries[bit] for bit in set(later.bits) - set(earlier.bits)}
        assert max(decisions.entries[bit] for bit in earlier.bits) < min(behind)
    assert set(parts[-1].bits) == set(range(len(decisions.entries)))


def test_where_two_values_cross_there_is_no_cut(demo_graph: PreparedGraph) -> None:
    found = demo_graph.parts()
    assert found is not None
    model, decisions = demo_graph._read_model(), found[1]
    changed = type(model)()
    changed.CopyFrom(model)
    # The image itself is read again at the very end: nothing in between is the only way any more.
    changed.graph.node.add(op_type="Shape", input=[model.graph.input[0].name], output=["again"], name="again")
    changed.graph.output.add(name="again").type.tensor_type.elem_type = 7
    assert len(cut_in_parts(changed, decisions)) == 1


def test_what_is_wrong_is_named_in_parts_too(tmp_path: Path) -> None:
    session = opened(tiny_bundle(tmp_path / "tiny"), make(tmp_path / "compiled"))
    parts, features = session.in_parts(), FeatureCache(0).of(0, 1)
    with pytest.raises(InputError, match="takes the inputs image"):
        parts.run({}, SPACE.default, features)
    with pytest.raises(GateError, match="another model"):
        parts.run(image(1), GateSpace((GateGroup("unit0", "choice", ("a", "b")),)).default, features)
    session.close()
    with pytest.raises(BackendError, match="closed"):
        parts.run(image(1), SPACE.default, features)
    with pytest.raises(BackendError, match="closed"):
        session.in_parts()


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_what_cannot_be_cut_says_so(tmp_path: Path) -> None:
    pytest.importorskip("builder.onnx_writer")
    modular = opened(modular_bundle(tmp_path / "modular"), make(tmp_path / "compiled"))
    assert modular.in_parts() is None
    modular.close()
    portable = open_session(tiny_bundle(tmp_path / "tiny"))
    assert portable.in_parts() is None
    portable.close()


# ---- the evaluation


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("max_bytes", [0, 200_000, 1 << 24])
def test_scores_are_the_same_with_shared_beginnings(tiny: Session, max_bytes: int, labelled: bool) -> None:
    spec = Bundle.read(DEMO).manifest.preprocessing
    spec = type(spec)(16, 16, spec.mean, spec.std)
    labels = np.random.default_rng(1).integers(0, 4, len(IMAGES)) if labelled else None
    cache = FeatureCache(max_bytes)
    plain, shared = (
        Evaluator(tiny, SPACE.default, IMAGES, spec, labels=labels, batch_size=16, features=features)
        for features in (None, cache)
    )
    for number, gates in enumerate([*SPACE.enumerate()] * 2):
        count = (10, 40, 16)[number % 3]  # so that batches of other subnets begin alike and end elsewhere
        assert shared.score(gates, 1.0, count=count) == plain.score(gates, 1.0, count=count)
        assert cache.bytes <= max_bytes
    assert shared.known() == plain.known()
    assert cache.bytes > 0 or max_bytes == 0
