"""The error of the latency model on subnets that its calibration has not seen."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from session_case import Case

from edge_runtime.backends.base import Array, Session, random_inputs
from edge_runtime.gates import Gates
from edge_runtime.measure import calibrate
from edge_runtime.measure.calibrate import check_subnets
from edge_runtime.seeds import random_gates

HELD_OUT = 30
BURST = 4
LEAST_ROUNDS = 12


def latency_model_error(case: Case) -> dict[str, float]:
    """Calibrated as the runtime does it; then held-out subnets, measured in the form that would serve them."""
    session = case.compiled(specialises=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        table = calibrate(case.bundle, session, case.options, seed=0, scratch=Path(scratch))
    seconds = time.perf_counter() - began
    rng, inputs = random.Random(2), random_inputs(session.inputs, seed=0)
    subnets = list(dict.fromkeys(random_gates(case.space, rng) for _ in range(HELD_OUT)))
    full, anchors = case.space.default, check_subnets(table.cost, seed=3)
    subnets = [gates for gates in subnets if gates not in anchors]
    with session.hold([*anchors, *subnets]):
        full_ms, ratios = _paired(session, inputs, full, [*anchors, *subnets], seconds=10.0 if case.quick else 30.0)
    session.close()
    # The machine is not as it was when the table was made; how much that is, subnets say that are not held out.
    measured = {gates: full_ms * ratio for gates, ratio in zip([*anchors, *subnets], ratios, strict=True)}
    drift = statistics.median(measured[gates] / table.predict_ms(gates) for gates in anchors)
    pairs = [(drift * table.predict_ms(gates), measured[gates]) for gates in subnets]
    errors = [abs(predicted / real - 1) for predicted, real in pairs]
    return {
        "mape": statistics.fmean(errors),
        "within_10pct": sum(error <= 0.1 for error in errors) / len(errors),
        "spearman": _spearman(pairs),
        "seconds": seconds,
        "drift": drift,
    }


def _paired(
    session: Session, inputs: Mapping[str, Array], reference: Gates, subnets: Sequence[Gates], *, seconds: float
) -> tuple[float, list[float]]:
    """Median of the reference in milliseconds; per subnet the median ratio to the reference just before and after.

    A shared machine changes its speed within seconds; a ratio to a neighbour in time does not.
    """

    def visit(gates: Gates) -> float:
        times = []
        for _ in range(1 + BURST):  # the first brings the weights back into the caches
            began_ns = time.perf_counter_ns()
            session.run(inputs, gates)
            times.append((time.perf_counter_ns() - began_ns) / 1e6)
        return statistics.median(times[1:])

    found: list[list[float]] = [[] for _ in subnets]
    references = []
    stop_s = time.perf_counter() + seconds
    while len(found[0]) < LEAST_ROUNDS or time.perf_counter() < stop_s:
        before = visit(reference)
        for gates, ratios in zip(subnets, found, strict=True):
            own, after = visit(gates), visit(reference)
            ratios.append(2 * own / (before + after))
            references.append(after)
            before = after
    return statistics.median(references), [statistics.median(ratios) for ratios in found]


def _spearman(pairs: Sequence[tuple[float, float]]) -> float:
    ranks = np.array(pairs).argsort(axis=0).argsort(axis=0)
    return float(np.corrcoef(ranks[:, 0], ranks[:, 1])[0, 1])
