"""The bench of objectives: its figures by hand, its draws, and answers that are run once."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "bench"))

import objectives
import objectives_answers
import shifts
from objectives_answers import Answers, answers_of
from objectives_kinds import OBJECTIVES, Sample

from edge_runtime.additive import AdditiveCost
from edge_runtime.bundle import Bundle
from edge_runtime.quality import probabilities

pytestmark = pytest.mark.builder

SUBNETS, IMAGES, CLASSES = 12, 600, 4


@pytest.fixture(scope="module")
def answers():
    """Subnets of falling skill: each answers with the label plus noise, the first with the least."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, IMAGES)
    noise = np.linspace(0.5, 3, SUBNETS)[:, None, None] * rng.standard_normal((SUBNETS, IMAGES, CLASSES))
    shares = probabilities(2 * np.eye(CLASSES)[labels] + noise).astype(np.float16)
    return Answers(np.linspace(0.9, 0.81, SUBNETS), np.arange(SUBNETS, dtype=float), shares, labels)


def test_figures_are_those_by_hand():
    truth = np.array([0.9, 0.8, 0.6, 0.5])
    regret, closed, spearman, kendall = objectives._figures(np.array([1.0, 2.0, 0.5, 0.0]), truth)
    assert regret == pytest.approx(10)
    assert closed == pytest.approx((0.8 - 0.7) / (0.9 - 0.7))
    assert spearman == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert kendall == pytest.approx(4 / 6)
    assert objectives._figures(-truth, truth)[0] == pytest.approx(40)
    ties = objectives._figures(np.ones(4), truth)
    assert ties[0] == pytest.approx(100 * (0.9 - 0.7)), "of equals the mean: their order says nothing"
    assert list(ties[2:]) == [0, 0]


def test_ranks_of_equals_are_their_mean():
    assert list(objectives._ranks(np.array([3.0, 1.0, 3.0, 0.0]))) == [2.5, 1, 2.5, 0]


def test_objectives_that_know_find_the_best_and_a_blind_one_does_not(answers):
    found, images = objectives._shift(answers, lambda rng: np.ones(IMAGES), 6, np.random.default_rng(1))
    assert images == shifts.IMAGES
    assert set(found) == set(OBJECTIVES)
    for name in ("all labels", "soft agreement", "agreement, ensemble"):
        assert found[name]["spearman"] > 0.7
        assert found[name]["gap_closed"] > 0.6
    assert found["20 labels"]["spearman"] < found["all labels"]["spearman"]
    rng = np.random.default_rng(2)
    shares = rng.dirichlet(np.ones(CLASSES), (SUBNETS, 30))
    sample = Sample(shares, shares[0], answers.labels[:30], answers.damage)
    assert all(np.isfinite(objective(sample)).all() for objective in OBJECTIVES.values())


def test_a_draw_shows_the_shift_and_tests_on_other_images(answers):
    weights = (answers.labels < 2).astype(float)
    sample, truth = objectives._drawn(answers, weights, np.random.default_rng(0))
    assert sample.shares.shape[::2] == (SUBNETS, CLASSES)
    assert 100 < len(sample.labels) < shifts.IMAGES, "only as many different images as the shift has"
    assert len(np.unique(sample.shares[0], axis=0)) == len(sample.labels)
    assert set(sample.labels) == {0, 1}
    assert truth.shape == (SUBNETS,)
    seen = np.flatnonzero(weights > 0)
    own = (answers.shares[:, seen].argmax(axis=2) == answers.labels[seen]).mean(axis=1)
    assert truth == pytest.approx(own, abs=0.12)


def test_answers_are_run_once(tmp_path, monkeypatch):
    bundle = Bundle.read(ROOT / "edge_runtime" / "assets" / "demo.nnf")
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)
    first = answers_of(bundle, images, np.zeros(6, np.int64), 12, tmp_path, 0)
    assert len(first.latency) == len(first.damage) == len(first.shares) >= 6
    assert first.latency[0] == 1
    assert first.shares.sum(axis=2) == pytest.approx(np.ones(first.shares.shape[:2]), abs=0.01)
    assert (first.latency <= 1).all()
    monkeypatch.setattr("search_table.calibrate", None)
    monkeypatch.setattr(objectives_answers, "probabilities", None)
    again = answers_of(bundle, images, np.zeros(6, np.int64), 12, tmp_path, 0)
    assert (again.shares == first.shares).all()


def test_a_latency_that_no_subnet_reaches_is_left_out():
    space = Bundle.read(ROOT / "edge_runtime" / "assets" / "demo.nnf").manifest.space
    entries = tuple(tuple(float(group.size - value) for value in range(group.size)) for group in space.groups)
    slow = AdditiveCost(space, 1000.0, entries)  # all subnets take nearly as long
    found = objectives_answers._subnets(slow, slow, 12, 0)
    assert found[0] == space.default
    assert all(slow(gates) > 0.7 * slow(space.default) for gates in found)
