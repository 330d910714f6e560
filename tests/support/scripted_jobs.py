"""Searches of the scripted model, and scores of its subnets."""

from __future__ import annotations

from collections.abc import Callable

from edge_runtime.adaptation import AdaptJob, AdaptPlan, AdaptResult, Finals
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import Gates
from edge_runtime.inputs import Frame, normalise
from edge_runtime.objectives import Budget, Score
from tests.support.scripted import (
    PREPROCESSING,
    PRIOR,
    SPACE,
    right,
    scripted_images,
    scripted_session,
    scripted_table,
    true_labels,
)

IMAGES = scripted_images(256)


def make_job(
    budget: Budget,
    *,
    current: str = "full",
    table_scale: float = 1.0,
    labelled: bool = False,
    cost_ms: Callable[[Gates], float] | None = None,
    images: Frame = IMAGES,
    seconds: float = 22.0,
    seed: int = 0,
    finals: type[Finals] = Finals,
    population: int = 12,
    least_gain: float = 0.005,
) -> AdaptJob:
    session = scripted_session(cost_ms)
    labels = true_labels(images) if labelled else None
    one = {"image": normalise(images[0], PREPROCESSING)[None]}
    return AdaptJob(
        finals=finals(session, one, seed=seed, clock_ns=session.now_ns),
        evaluator=Evaluator(session, SPACE.default, images, PREPROCESSING, labels=labels),
        calibrate=lambda: scripted_table(table_scale),
        prior=PRIOR,
        current=SPACE.parse(current),
        plan=AdaptPlan(budget, seconds, population=population, generations=4, least_gain=least_gain, seed=seed),
        clock_ns=session.now_ns,
    )


def run(job: AdaptJob) -> AdaptResult:
    for _ in job.steps():
        pass
    assert job.result is not None
    return job.result


def exact_quality(gates: Gates) -> float:
    """Share of the images on which a subnet answers as the full one does; both are right wherever the full one is."""
    return sum(right(gates, image) for image in IMAGES) / len(IMAGES)


def score(text: str, quality: float, latency_ms: float) -> Score:
    return Score(
        SPACE.parse(text), quality, max(0.0, quality - 0.05), min(1.0, quality + 0.05), 200, latency_ms, None, True
    )


FULL, FAST, SLOW = score("full", 1.0, 12.0), score("2-2-2-2-2", 0.80, 2.0), score("1-0-0-0-0", 0.90, 9.0)
SIMILAR = score("0-1-0-0-0", 0.899, 8.0)
