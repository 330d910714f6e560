"""The draws of tools/bench/shifts.py, and the figures of tools/bench/search_shifts.py on a small space."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"
sys.path.insert(0, str(BENCH))

import search_shifts
from search_answers import KeptClasses, Network
from search_draws import Setting
from search_trial import Terms
from shifts import IMAGES, LEAST_IMAGES, shifts_of, split

from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.objectives import Budget
from tests.support.scripted import CLASSES, COST, PREPROCESSING, PRIOR, SPACE, scripted_images, scripted_session
from tests.support.scripted import true_labels as labels_of

PLAN = AdaptPlan(Budget(), subsets=(8, 24), population=6, generations=3, finalists=2)
CLASSES_OF_SHIFTS = np.arange(1000) % 50


def test_halves_share_no_image_and_hold_those_of_the_shift_alone():
    rng = np.random.default_rng(0)
    for name, draw in shifts_of(CLASSES_OF_SHIFTS, None).items():
        weights = draw(rng)
        own, other = split(weights, rng)
        assert not set(own.images) & set(other.images), name
        assert len(own.images) + len(other.images) == np.count_nonzero(weights)
        for half in (own, other):
            assert half.shares.sum() == pytest.approx(1)
            assert half.shares == pytest.approx(weights[half.images] / weights[half.images].sum())


def test_a_device_sees_different_images_as_often_as_the_shift_allows():
    rng = np.random.default_rng(0)
    for name, draw in shifts_of(CLASSES_OF_SHIFTS, None).items():
        for _ in range(20):
            own, _ = split(draw(rng), rng)
            seen = own.sample(rng)
            assert set(seen) <= set(own.images)
            assert LEAST_IMAGES <= len(seen) <= IMAGES
            assert len(set(seen)) == len(seen) or len(seen) == LEAST_IMAGES, name


def test_a_condition_is_seen_and_judged_alone():
    conditions = np.array(["day", "night"])[CLASSES_OF_SHIFTS % 2]
    shifts = shifts_of(CLASSES_OF_SHIFTS, conditions)
    assert list(shifts) == ["none", "day", "night"]
    own, other = split(shifts["night"](np.random.default_rng(0)), np.random.default_rng(0))
    assert set(conditions[own.images]) == set(conditions[other.images]) == {"night"}


@pytest.fixture
def terms(tmp_path):
    images = scripted_images(160, seed=3)
    network = Network(scripted_session(), images, PREPROCESSING)
    kept = KeptClasses(network, tmp_path / "answers.sqlite")
    limit_ms = 0.7 * COST(SPACE.default)
    yield Terms(COST, PRIOR, limit_ms, 0.5, network, kept, labels_of(images), len(CLASSES))
    kept.close()


def test_accuracy_is_weighted_as_the_shift_weighs(terms):
    weights = np.where(terms.labels == terms.labels[0], 3.0, 1.0)
    half, _ = split(weights, np.random.default_rng(0))
    gates = SPACE.parse("1-0-1-0-1")
    answers = terms.kept.classes(gates, half.images) == terms.labels[half.images]
    expected = sum(w for w, ok in zip(weights[half.images], answers, strict=True) if ok) / weights[half.images].sum()
    assert search_shifts._accuracy(terms, gates, half) == pytest.approx(expected)


def test_the_reference_is_the_best_of_the_half_by_its_own_weights(terms):
    """What the search found is among the candidates, so on that half nothing that was found is better."""
    weights = np.where(terms.labels < 2, 5.0, 1.0)
    rng = np.random.default_rng(1)
    own, _ = split(weights, rng)
    setting = replace(Setting(), plan=PLAN, factor=2)
    for text in ("0-0-0-0-0", "1-1-1-1-1"):
        found = SPACE.parse(text)
        best = search_shifts._reference(terms, own, rng, setting, 0, found)
        assert search_shifts._accuracy(terms, best, own) >= search_shifts._accuracy(terms, found, own)


def test_figures_are_means_over_draws_and_repeat(terms):
    setting = replace(Setting(), plan=PLAN, factor=1)
    draw = shifts_of(terms.labels, None)["none"]
    first = search_shifts._shift(terms, draw, setting, 3)
    assert first == search_shifts._shift(terms, draw, setting, 3)
    assert first["regret_points"] == pytest.approx(100 * (first["reference_accuracy"] - first["accuracy"]), abs=0.02)
    assert first["images"] == first["other_images"] == 80
    assert 0 < first["random_accuracy"] < first["full_accuracy"] <= 1
