"""The draws of tools/bench/shifts.py, and the figures of tools/bench/search_shifts.py on a small space."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"
sys.path.insert(0, str(BENCH))

import search_shifts
from search_answers import KeptClasses, Network
from search_cases import Case, Loaded
from search_draws import Setting
from search_shifts import Row
from search_trial import Terms, Trial
from shifts import IMAGES, LEAST_IMAGES, Half, shifts_of, split

from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.objectives import Budget
from tests.support.scripted import (
    CLASSES,
    COST,
    PREPROCESSING,
    PRIOR,
    SPACE,
    scripted_images,
    scripted_session,
    true_labels,
)
from tests.support.tiny import tiny_bundle

PLAN = AdaptPlan(Budget(), subsets=(8, 24), population=6, generations=3, finalists=2)
SETTING = replace(Setting(), plan=PLAN, factor=1)
LABELS = np.arange(1000) % 50


@pytest.fixture
def terms(tmp_path):
    images = scripted_images(160, seed=3)
    network = Network(scripted_session(), images, PREPROCESSING)
    kept = KeptClasses(network, tmp_path / "answers.sqlite")
    yield Terms(COST, PRIOR, 0.7 * COST(SPACE.default), 0.5, network, kept, true_labels(images), len(CLASSES))
    kept.close()


# Draws


def test_halves_share_no_image_and_hold_those_of_the_shift_alone():
    rng = np.random.default_rng(0)
    for name, weigh in shifts_of(LABELS, None).items():
        weights = weigh(rng)
        own, other = split(weights, rng)
        assert not set(own.images) & set(other.images), name
        assert len(own.images) + len(other.images) == np.count_nonzero(weights)
        for half in (own, other):
            assert half.shares == pytest.approx(weights[half.images] / weights[half.images].sum())


def test_where_one_half_would_be_empty_both_are_the_images_of_the_shift():
    weights = np.zeros(10)
    weights[7] = 2.0
    own, other = split(weights, np.random.default_rng(0))
    assert list(own.images) == list(other.images) == [7]


def test_a_device_sees_different_images_as_often_as_the_shift_says():
    images = np.arange(1000)
    shares = np.where(images < 250, 3.0, 1.0) / 1500
    rng = np.random.default_rng(0)
    seen = [Half(images, shares).sample(rng) for _ in range(50)]
    assert all(len(each) == len(set(each)) == IMAGES for each in seen)
    assert np.mean([(each < 250).mean() for each in seen]) == pytest.approx(0.5, abs=0.02)


def test_few_images_are_seen_of_a_narrow_shift():
    narrow = Half(np.arange(3), np.array([0.5, 0.3, 0.2]))
    seen = narrow.sample(np.random.default_rng(0))
    assert [np.count_nonzero(seen == image) for image in range(3)] == [
        8,
        pytest.approx(4.8, abs=1),
        pytest.approx(3.2, abs=1),
    ]
    assert len(seen) == LEAST_IMAGES
    assert narrow.effective == pytest.approx(1 / 0.38)


def test_repeating_a_half_shows_each_image_its_share_of_times_and_all_of_an_even_one():
    images, rng = np.arange(200) + 7, np.random.default_rng(0)
    even = Half(images, np.full(200, 1 / 200)).repeated(200, rng)
    assert sorted(even) == list(images)
    assert list(even) != list(images)
    shares = rng.dirichlet(np.full(200, 0.5))
    often = Half(images, shares).repeated(1000, rng)
    counts = np.array([np.count_nonzero(often == image) for image in images])
    assert np.abs(counts - 1000 * shares).max() < 1


def test_a_condition_is_seen_and_judged_alone():
    conditions = np.array(["day", "night"])[LABELS % 2]
    shifts = shifts_of(LABELS, conditions)
    assert list(shifts) == ["none", "day", "night"]
    own, other = split(shifts["night"](np.random.default_rng(0)), np.random.default_rng(0))
    assert set(conditions[own.images]) == set(conditions[other.images]) == {"night"}


def test_images_keep_their_labels_and_conditions_when_a_case_shuffles_them(tmp_path):
    bundle = tiny_bundle(tmp_path / "tiny")
    side = bundle.manifest.preprocessing.height
    frames = np.stack([np.full((side, side, 3), number, np.uint8) for number in range(40)])
    loaded = Loaded(frames, np.arange(40) % 3, np.array([f"c{number}" for number in range(40)]))
    found = Case(None, lambda bundle, data: loaded).images(bundle, None, 25, seed=1)
    numbers = found.frames[:, 0, 0, 0]
    assert len(set(numbers)) == 25
    assert list(numbers) != sorted(numbers)
    assert list(found.labels) == [number % 3 for number in numbers]
    assert list(found.conditions) == [f"c{number}" for number in numbers]


# Figures


class Answers:
    """Subnet `1-0-0-0-0` is right on class 0 only, `0-1-0-0-0` on all others, any other one nowhere."""

    def __init__(self, labels):
        self._labels = labels

    def classes(self, gates, images):
        right = {"1-0-0-0-0": self._labels == 0, "0-1-0-0-0": self._labels != 0}.get(str(gates), False)
        return np.where(right, self._labels, -1)[images]


def test_the_reference_is_chosen_by_the_weights_of_the_shift(terms, monkeypatch):
    one, two, poor = (SPACE.parse(text) for text in ("1-0-0-0-0", "0-1-0-0-0", "0-0-1-0-0"))
    monkeypatch.setattr(search_shifts, "reference_search", lambda *_: [one, two])
    scripted = replace(terms, kept=Answers(terms.labels))
    own = np.arange(len(terms.labels))
    for heavy, best in ((50.0, one), (1.0, two)):
        half, _ = split(np.where(terms.labels == 0, heavy, 1.0), np.random.default_rng(0))
        assert search_shifts.reference(scripted, half, own[:8], SETTING, 0, poor) == best
        share = half.shares[terms.labels[half.images] == 0].sum()
        assert search_shifts.accuracy(scripted, one, half) == pytest.approx(share)
        assert search_shifts.accuracy(scripted, two, half) == pytest.approx(1 - share)


def test_what_the_search_found_may_be_the_reference(terms, monkeypatch):
    one, poor = SPACE.parse("1-0-0-0-0"), SPACE.parse("0-0-1-0-0")
    monkeypatch.setattr(search_shifts, "reference_search", lambda *_: [poor])
    scripted = replace(terms, kept=Answers(terms.labels))
    half, _ = split(np.ones(len(terms.labels)), np.random.default_rng(0))
    assert search_shifts.reference(scripted, half, half.images, SETTING, 0, one) == one


def test_the_search_sees_one_half_without_labels_and_the_other_half_judges(terms, monkeypatch):
    seen, judged = [], []

    class Watched(Trial):
        def evaluator(self, count, *, labelled=True):
            seen.append((set(self._images[:count].tolist()), labelled))
            return super().evaluator(count, labelled=labelled)

    def watched(terms, gates, half):
        judged.append(set(half.images.tolist()))
        return 0.5

    monkeypatch.setattr(search_shifts, "Trial", Watched)
    monkeypatch.setattr(search_shifts, "accuracy", watched)
    row = search_shifts.drawn(terms, lambda rng: np.ones(len(terms.labels)), SETTING, 5)
    (ours, with_labels), (reference, also) = seen
    assert (with_labels, also) == (False, True)
    assert ours <= reference
    assert all(half == judged[0] for half in judged)
    assert not judged[0] & reference
    assert COST(SPACE.parse(row.gates)) <= terms.limit_ms
    assert (row.images, row.effective_images) == (80, 80)


def test_draws_of_a_shift_differ_repeat_and_are_kept(terms, tmp_path, monkeypatch):
    weigh = shifts_of(terms.labels, None)["none"]
    kept = search_shifts._Kept(terms, SETTING, tmp_path / "shifts.jsonl")
    rows = [kept.row("none", draw, weigh) for draw in range(3)]
    assert len(set(rows)) > 1
    assert search_shifts._Kept(terms, SETTING, tmp_path / "other.jsonl").row("none", 2, weigh) == rows[2]
    monkeypatch.setattr(search_shifts, "drawn", None)
    again = search_shifts._Kept(terms, SETTING, tmp_path / "shifts.jsonl")
    assert [again.row("none", draw, weigh) for draw in range(3)] == rows
    with pytest.raises(TypeError):  # another limit: it has to be drawn, and cannot be
        search_shifts._Kept(replace(terms, limit_ms=0.1), SETTING, tmp_path / "shifts.jsonl").row("none", 0, weigh)


def row(reference, found, at_random):
    return Row(reference, found, at_random, 0.9, 100, 50.0, "0-0-0-0-0")


def test_all_shifts_weigh_the_same_and_their_gaps_are_pooled():
    rows = {
        "even": [row(0.80, 0.79, 0.70), row(0.82, 0.79, 0.72)],  # regrets of 1 and 3 points, gaps of 10
        "hopeless": [row(0.50, 0.50, 0.50), row(0.50, 0.50, 0.50)],  # nothing to gain
    }
    even, hopeless = (search_shifts.figures(some) for some in rows.values())
    assert even["regret_points"] == pytest.approx(2)
    assert even["regret_margin"] == pytest.approx(1.96 * math.sqrt(2) / math.sqrt(2), abs=1e-3)
    assert even["gap_closed"] == pytest.approx(0.8)
    assert hopeless["gap_closed"] is None
    found = search_shifts.overall(rows)
    assert found["regret_points"] == pytest.approx(1)
    assert found["regret_margin"] == pytest.approx(even["regret_margin"] / 2, abs=1e-3)
    assert found["gap_closed"] == pytest.approx(1 - 1 / 5)


def test_a_limit_that_nothing_meets_is_said():
    plan = SimpleNamespace(feasible=False)
    case = SimpleNamespace(limited=lambda fraction: SimpleNamespace(plan=plan))
    assert search_shifts._budget(case, 0.01, SETTING, 2) == {"reachable": False}
