from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.backends import Session, open_session
from edge_runtime.errors import BackendError, InputError
from edge_runtime.evaluate import VARIED_CLASSES, Evaluator
from edge_runtime.gates import Gates
from edge_runtime.inputs import preprocess_all
from edge_runtime.quality import Comparison, probabilities, wilson_interval
from tests.support.tiny import SPACE, tiny_bundle, tiny_reference

IMAGES = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def session(bundle: Any) -> Iterator[Session]:
    opened = open_session(bundle)
    yield opened
    opened.close()


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_agreement_is_what_its_definition_says(session: Session, bundle: Any) -> None:
    spec, gates = bundle.manifest.preprocessing, SPACE.parse("1-3-0")
    evaluator = Evaluator(session, SPACE.default, IMAGES, spec, batch_size=32)
    score = evaluator.score(gates, 2.5)
    tensors = preprocess_all(list(IMAGES), spec)
    full, own = softmax(tiny_reference(SPACE.default, tensors)), softmax(tiny_reference(gates, tensors))
    expected = np.minimum(1, (full * own).sum(axis=1) / (full * full).sum(axis=1))
    np.testing.assert_allclose(evaluator.values(gates), expected, atol=1e-4)
    assert score.quality == pytest.approx(expected.mean(), abs=1e-4)
    assert score.low < score.quality <= score.high
    assert (score.samples, score.latency_ms, score.measured) == (70, 2.5, False)


def test_the_full_subnet_agrees_with_itself_and_nobody_is_better(session: Session, bundle: Any) -> None:
    evaluator = Evaluator(session, SPACE.default, IMAGES, bundle.manifest.preprocessing)
    assert evaluator.score(SPACE.default, 1.0).quality == 1.0
    evaluator.score(SPACE.parse("2-2-2"), 1.0)
    assert evaluator.compare(SPACE.default, SPACE.parse("2-2-2")).better
    assert not evaluator.compare(SPACE.parse("2-2-2"), SPACE.default).better


def test_images_are_varied_as_far_as_the_full_subnet_names_different_classes(session: Session, bundle: Any) -> None:
    spec = bundle.manifest.preprocessing
    named = tiny_reference(SPACE.default, preprocess_all(list(IMAGES), spec)).argmax(axis=1)

    def variety(images: np.ndarray) -> float:
        evaluator = Evaluator(session, SPACE.default, images, spec)
        assert evaluator.variety == 1.0  # nothing is known yet
        evaluator.score(SPACE.parse("1-3-0"), 1.0)
        return evaluator.variety

    one = IMAGES[named == np.bincount(named).argmax()]
    assert variety(np.repeat(IMAGES[:1], 40, axis=0)) == pytest.approx(0)
    assert variety(one) == pytest.approx(0)
    shares = np.bincount(named) / len(named)
    effective = np.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    expected = min(1.0, (effective - 1) / (min(VARIED_CLASSES, len(bundle.manifest.task.class_names)) - 1))
    assert variety(IMAGES) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "expected"), [([0] * 8, 0.0), ([3] * 8, 0.0), ([0, 0, 3, 3], 1 / 3), ([0, 1, 2, 3], 1.0)]
)
def test_labelled_images_are_as_varied_as_their_labels(
    session: Session, bundle: Any, labels: list[int], expected: float
) -> None:
    spec = bundle.manifest.preprocessing
    evaluator = Evaluator(session, SPACE.default, IMAGES[: len(labels)], spec, labels=np.array(labels))
    assert evaluator.variety == pytest.approx(expected)
    evaluator.score(SPACE.parse("1-3-0"), 1.0)
    assert evaluator.variety == pytest.approx(expected)


def test_what_is_not_finite_names_no_class(session: Session, bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = Evaluator(session, SPACE.default, IMAGES[:4], bundle.manifest.preprocessing)
    logits = np.full((4, 4), -9.0)
    logits[:, 2], logits[:2] = 9.0, np.nan
    monkeypatch.setattr(type(session), "run", lambda self, inputs, gates: {session.outputs[0].name: logits})
    evaluator.score(SPACE.default, 1.0)
    assert evaluator.variety == pytest.approx(0)


def test_with_labels_subnets_are_ranked_by_the_probability_of_the_right_class(session: Session, bundle: Any) -> None:
    spec, gates = bundle.manifest.preprocessing, SPACE.parse("1-3-0")
    own = softmax(tiny_reference(gates, preprocess_all(list(IMAGES), spec)))
    labels = np.random.default_rng(3).integers(0, own.shape[1], len(IMAGES))
    evaluator = Evaluator(session, SPACE.default, IMAGES, spec, labels=labels, batch_size=32)
    rank, score = evaluator.score(gates, 2.5, fine=True), evaluator.score(gates, 2.5)
    expected = own[np.arange(len(labels)), labels]
    np.testing.assert_allclose(evaluator.fine_values(gates), expected, atol=1e-4)
    assert rank.quality == pytest.approx(expected.mean(), abs=1e-4)
    assert score.quality == pytest.approx((own.argmax(axis=1) == labels).mean())
    again = Evaluator(session, SPACE.default, IMAGES, spec, labels=labels, known=evaluator.known())
    assert again.score(gates, 2.5) == score
    assert again.score(gates, 2.5, fine=True) == rank
    assert again.taken_up == len(IMAGES)


def test_accuracy_where_there_are_labels(session: Session, bundle: Any) -> None:
    spec = bundle.manifest.preprocessing
    labels = tiny_reference(SPACE.default, preprocess_all(list(IMAGES), spec)).argmax(axis=1)
    labels[:7] = (labels[:7] + 1) % 4
    evaluator = Evaluator(session, SPACE.default, IMAGES, spec, labels=labels)
    score = evaluator.score(SPACE.default, 1.0)
    assert score.quality == pytest.approx(0.9)
    assert (score.low, score.high) == pytest.approx(wilson_interval(0.9, 70))


def test_a_subnet_runs_once_on_each_image(bundle: Any) -> None:
    counting = Counting()
    evaluator = Evaluator(counting, SPACE.default, IMAGES, bundle.manifest.preprocessing, batch_size=16)
    gates = SPACE.parse("0-1-0")
    assert evaluator.score(gates, 1.0, count=20).samples == 20
    assert evaluator.score(gates, 1.0, count=10).samples == 20
    assert evaluator.score(gates, 1.0).samples == 70
    assert counting.images[str(gates)] == 70
    assert counting.images[str(SPACE.default)] == 70
    assert counting.largest == 16


def test_answers_that_are_no_numbers_are_worth_nothing(bundle: Any) -> None:
    bad = SPACE.parse("1-1-1")
    evaluator = Evaluator(Counting(nan=bad), SPACE.default, IMAGES, bundle.manifest.preprocessing)
    assert evaluator.score(bad, 1.0).quality == 0.0
    labelled = Evaluator(
        Counting(nan=bad), SPACE.default, IMAGES, bundle.manifest.preprocessing, labels=np.zeros(70, np.int64)
    )
    assert labelled.score(bad, 1.0).quality == 0.0


def test_an_output_for_another_number_of_images_is_an_error(bundle: Any) -> None:
    evaluator = Evaluator(Counting(short=True), SPACE.default, IMAGES, bundle.manifest.preprocessing)
    with pytest.raises(BackendError, match="for 32 images"):
        evaluator.score(SPACE.default, 1.0)


def test_no_images_are_refused(session: Session, bundle: Any) -> None:
    with pytest.raises(InputError, match="shape"):
        Evaluator(session, SPACE.default, IMAGES[:0], bundle.manifest.preprocessing)
    with pytest.raises(InputError, match="3 labels for 70 images"):
        Evaluator(session, SPACE.default, IMAGES, bundle.manifest.preprocessing, labels=np.zeros(3, np.int64))


@pytest.mark.parametrize(("more", "significant"), [(4, False), (5, False), (6, True), (12, True)])
def test_few_differing_images_are_judged_as_by_the_sign_test(more: int, significant: bool) -> None:
    worse = np.ones(256)
    worse[:more] = 0
    assert Comparison.of(np.ones(256), worse).better is significant


def test_too_few_pairs_tell_nothing() -> None:
    assert not Comparison.of(np.ones(1), np.zeros(1)).better
    assert Comparison.of(np.empty(0), np.empty(0)).low == -1.0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=60))
def test_comparisons_are_antisymmetric(pairs: list[tuple[float, float]]) -> None:
    first, second = np.array(pairs).T
    one, other = Comparison.of(first, second), Comparison.of(second, first)
    assert one.low <= one.high
    np.testing.assert_allclose((one.difference, one.low, one.high), (-other.difference, -other.high, -other.low))
    assert not (one.better and other.better)


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_intervals_hold_their_mean(mean: float, samples: int) -> None:
    low, high = wilson_interval(mean, samples)
    assert 0 <= low <= mean <= high <= 1
    assert high - low > 0


def test_probabilities_of_extreme_logits() -> None:
    shares = probabilities(np.array([[1e4, 0.0], [-np.inf, 0.0], [np.nan, 1.0]], np.float32))
    np.testing.assert_allclose(shares, [[1, 0], [0, 0], [0, 0]], atol=1e-12)


class Counting:
    """A session that counts what it is given."""

    name = "counting"
    threads = 1

    def __init__(self, *, nan: Gates | None = None, short: bool = False) -> None:
        from edge_runtime.bundle import TensorSpec

        self.inputs = (TensorSpec("image", "float32", (None, 3, 16, 16)),)
        self.outputs = (TensorSpec("logits", "float32", (None, 4)),)
        self.images: dict[str, int] = {}
        self.largest = 0
        self._nan, self._short = nan, short

    def run(self, inputs: Mapping[str, Any], gates: Gates) -> dict[str, Any]:
        count = len(inputs["image"])
        self.images[str(gates)] = self.images.get(str(gates), 0) + count
        self.largest = max(self.largest, count)
        logits = np.zeros((count - self._short, 4), np.float32)
        logits[:, 0] = np.nan if gates == self._nan else 1.0
        return {"logits": logits}

    def close(self) -> None:
        pass
