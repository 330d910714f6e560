"""Objectives on class probabilities: bounds, the cases that each is there for, and the estimate from few labels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_runtime.errors import UsageError
from edge_runtime.quality import (
    agreement,
    certainty,
    confidence,
    correctness,
    effective_classes,
    few_labels,
    graded,
    nuclear_norm,
    overlap,
    probabilities,
    shrunken,
    teacher,
)

CLASSES = 5
shares = arrays(np.float64, (12, CLASSES), elements=st.floats(-30, 30)).map(probabilities)


def one_hot(answers, classes=CLASSES):
    return np.eye(classes)[np.asarray(answers)]


@given(shares, shares)
def test_every_value_is_in_its_range(first, second):
    for values in (agreement(first, second), overlap(first, second), confidence(first), certainty(first)):
        assert values.shape == (12,)
        assert (values >= -1e-12).all()
        assert (values <= 1 + 1e-12).all()
    assert 0 < nuclear_norm(first) <= 1 + 1e-12
    assert 1 - 1e-9 <= effective_classes(first) <= CLASSES + 1e-9


@given(shares)
def test_a_subnet_agrees_with_itself_and_with_a_teacher_that_is_it(own):
    assert agreement(own, own) == pytest.approx(np.ones(12))
    assert teacher([own, own]) == pytest.approx(own)


@given(shares, st.lists(st.integers(0, CLASSES - 1), min_size=12, max_size=12))
def test_a_graded_value_says_whether_the_answer_is_right_and_how_likely_it_was(own, labels):
    labels = np.array(labels)
    found, right = graded(own, labels), correctness(own, labels)
    assert ((found > 0.5) == (right == 1)).all()
    assert 2 * found - right == pytest.approx(own[np.arange(12), labels])
    assert not graded(np.zeros((12, CLASSES)), labels).any()


def test_rows_that_gave_nothing_are_worth_nothing():
    nothing, sure = np.zeros((3, CLASSES)), one_hot([0, 1, 2])
    assert not correctness(nothing, np.array([0, 0, 0])).any()
    for values in (agreement(nothing, sure), agreement(sure, nothing), overlap(nothing, sure), confidence(nothing)):
        assert not values.any()
    assert not certainty(nothing).any()
    assert nuclear_norm(nothing) == 0
    assert effective_classes(nothing) == 1
    with pytest.raises(UsageError):
        teacher([])


def test_confidence_alone_raises_no_agreement():
    reference = probabilities(np.array([[2.0, 1.0, 0.0, 0.0, 0.0]]))
    wrong, right = one_hot([1]), one_hot([0])
    assert agreement(wrong, reference) < agreement(reference, reference) == agreement(right, reference) == 1


def test_the_nuclear_norm_is_high_for_sure_answers_that_are_spread():
    spread, collapsed = one_hot(np.arange(10) % CLASSES), one_hot([0] * 10)
    unsure = np.full((10, CLASSES), 1 / CLASSES)
    assert nuclear_norm(spread) == pytest.approx(1)
    assert nuclear_norm(collapsed) == pytest.approx(1 / math.sqrt(CLASSES))
    assert nuclear_norm(unsure) == pytest.approx(1 / CLASSES)
    values = np.linalg.eigvalsh(spread.T @ spread)
    assert nuclear_norm(spread) == pytest.approx(np.sqrt(np.abs(values)).sum() / math.sqrt(CLASSES * 10))
    assert (effective_classes(spread), effective_classes(collapsed)) == pytest.approx((CLASSES, 1))


def drawn(rng, count, skill):
    """Whether each image is right, and a proxy that knows a part of it."""
    correct = (rng.random(count) < 0.7).astype(float)
    return correct, np.clip(0.5 + skill * (correct - 0.7) + 0.05 * rng.standard_normal(count), 0, 1)


@pytest.mark.parametrize("skill", [0.0, 0.4])
def test_few_labels_estimate_is_unbiased_and_its_interval_holds(skill):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        correct, proxy = drawn(rng, 40, skill)
        found.append(few_labels(correct, proxy, drawn(rng, 300, skill)[1]))
    values, lows, highs = map(np.array, zip(*found, strict=True))
    assert values.mean() == pytest.approx(0.7, abs=0.01)
    assert ((lows <= 0.7) & (highs >= 0.7)).mean() > 0.9


def test_a_proxy_that_knows_makes_the_estimate_sharper_and_one_that_does_not_is_left_out():
    rng = np.random.default_rng(1)
    errors = {"labels": [], "known": [], "noise": []}
    for _ in range(300):
        correct, proxy = drawn(rng, 40, 0.4)
        errors["labels"].append(correct.mean() - 0.7)
        errors["known"].append(few_labels(correct, proxy, drawn(rng, 300, 0.4)[1])[0] - 0.7)
        errors["noise"].append(few_labels(correct, rng.random(40), rng.random(300))[0] - 0.7)
    spread = {name: float(np.std(values)) for name, values in errors.items()}
    assert spread["known"] < 0.6 * spread["labels"]
    assert spread["noise"] < 1.1 * spread["labels"]


def test_rows_that_gave_nothing_do_not_spread_the_classes():
    rows = np.concatenate([one_hot([0] * 6), np.zeros((6, CLASSES))])
    assert effective_classes(rows) == pytest.approx(1)
    assert effective_classes(np.concatenate([one_hot(np.arange(CLASSES)), np.zeros((5, CLASSES))])) <= CLASSES + 1e-9


def many(rng, truth, images):
    """Right or wrong of subnets of these accuracies, on the same images, [S, images]."""
    return (rng.random((len(truth), images)) < truth[:, None]).astype(float)


def test_shrunken_means_without_noise_are_the_means():
    truth = np.random.default_rng(0).random(20)
    values = np.repeat(truth[:, None], 30, axis=1)
    assert shrunken(values, np.arange(20.0)[:, None]) == pytest.approx(truth)


def test_where_all_is_noise_the_line_is_what_is_left():
    covariate = np.linspace(0, 1, 40)
    values = many(np.random.default_rng(2), 0.5 + 0.2 * covariate, 60)
    found = shrunken(values, covariate[:, None])
    line = np.polyval(np.polyfit(covariate, values.mean(axis=1), 1), covariate)
    assert np.abs(found - line).max() < 0.3 * np.abs(values.mean(axis=1) - line).max()


def test_the_best_of_many_is_nearer_to_the_truth_when_it_is_shrunken():
    rng, gains = np.random.default_rng(3), []
    for _ in range(60):
        covariate = rng.standard_normal(48)
        truth = np.clip(0.6 + 0.05 * covariate + 0.01 * rng.standard_normal(48), 0, 1)
        values = many(rng, truth, 100)
        gains.append(truth[shrunken(values, covariate[:, None]).argmax()] - truth[values.mean(axis=1).argmax()])
    assert np.mean(gains) > 0.01


def test_too_few_subnets_are_not_shrunken():
    values = many(np.random.default_rng(4), np.full(6, 0.5), 20)
    assert shrunken(values, np.arange(6.0)[:, None]) == pytest.approx(values.mean(axis=1))
    assert shrunken(values[:, :1], np.ones((6, 1))) == pytest.approx(values[:, 0])


def test_few_labels_without_help_is_their_mean():
    correct = np.array([1.0, 0.0, 1.0, 1.0])
    value, low, high = few_labels(correct, np.ones(4), np.empty(0))
    assert value == 0.75
    assert 0 <= low < 0.75 < high <= 1
    assert few_labels(np.ones(20), np.linspace(0, 1, 20), np.linspace(0, 1, 50))[1] < 0.9
    with pytest.raises(UsageError):
        few_labels(np.ones(1), np.ones(1), np.ones(9))
