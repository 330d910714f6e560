"""Accuracy against latency: what `EdgeModel.adapt` finds on unlabelled images, at shares of the oracle's latency.

The oracle's latency is that of its static ONNX export; it is timed in the same rounds as the subnet, which runs in the
form that the runtime really runs. Ratios are of medians. A subnet is searched on unlabelled images only and then tested
on other, labelled ones; the difference to the oracle is paired by image. The last line of output is one JSON object.

    python tools/bench/curve.py scenes --bundle edge_runtime/assets/demo.nnf --oracle tests/data/demo_oracle.onnx
    python tools/bench/curve.py fod --data DIR --bundle tests/data/runway.nnf --oracle tests/data/runway_oracle.onnx
    python tools/bench/curve.py fod-conditions --data DIR --bundle dry.nnf --oracle dry.onnx

The photographs need no torch, the scenes do (their settings stand beside the recipe's training).
"""

# ruff: noqa: TID251 - a bench may use the builder's data sets; only the runtime must not

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import numpy.typing as npt

from builder.fod import CONDITIONS, load_crops
from edge_runtime import Budget, EdgeModel, Gates
from edge_runtime.adaptation import AdaptStatus
from edge_runtime.backends import Session, SessionOptions, open_static, runtime_versions
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BudgetError, InputError
from edge_runtime.inputs import preprocess_all
from edge_runtime.measure import Candidate, measure_candidates, random_inputs
from edge_runtime.model.compile import open_quickest
from edge_runtime.quality import Comparison
from edge_runtime.state import StateDir

FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
SEARCH_IMAGES = 256
RUNS = 200
TRIES = 3
FIRST_SLACK = 1.0
CLOSE = 0.95
BATCH = 32

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Case:
    """One curve: images to search on, without labels, and others to test on."""

    name: str
    search: Images
    test: Images
    labels: Labels


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=("scenes", "fod", "fod-conditions"), help="images to search and test on")
    parser.add_argument("--bundle", required=True, help="the elastic model")
    parser.add_argument("--oracle", required=True, help="static ONNX export of the network that it was made from")
    parser.add_argument("--data", default=os.environ.get("NNF_DATA"), help="folder of fod_a_224px.npz ($NNF_DATA)")
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS, help="of the oracle's latency")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the result to this file too")
    return parser.parse_args()


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    options = SessionOptions(threads=arguments.threads)
    oracle = open_static(Path(arguments.oracle).read_bytes(), options)
    return {
        "bundle": Bundle.read(arguments.bundle).digest,
        "threads": arguments.threads,
        "seed": arguments.seed,
        "curves": [_curve(case, oracle, options, arguments) for case in _cases(arguments)],
    }


def _cases(arguments: argparse.Namespace) -> Iterator[Case]:
    rng = np.random.default_rng(arguments.seed)
    if arguments.set == "scenes":
        from builder.recipes.demo_config import DEMO  # imports torch, which the photographs do not need

        search, test = (DEMO.render(part, workers=len(os.sched_getaffinity(0))) for part in ("validation", "test"))
        yield _case("rendered scenes", search["images"], test["images"], test["labels"], rng)
        return
    if not arguments.data:
        raise InputError("this curve needs photographs", hint="name the folder of fod_a_224px.npz with --data")
    crops = load_crops(Path(arguments.data))
    if arguments.set == "fod":
        test = crops.split("test")
        yield _case("FOD-A", crops.split("validation").images, test.images, test.labels, rng)
        return
    crops = crops.only_classes(crops.common_classes())
    for condition in CONDITIONS:
        search, test = (crops.split(name).condition(condition) for name in ("validation", "test"))
        yield _case(f"FOD-A {condition}", search.images, test.images, test.labels, rng)


def _case(name: str, search: Images, test: Images, labels: Labels, rng: np.random.Generator) -> Case:
    chosen = rng.permutation(len(search))[:SEARCH_IMAGES]
    return Case(name, search[chosen], test, labels.astype(np.int64))


def _curve(case: Case, oracle: Session, options: SessionOptions, arguments: argparse.Namespace) -> dict[str, Any]:
    bundle = Bundle.read(arguments.bundle)
    tensors = preprocess_all(case.test, bundle.manifest.preprocessing)
    oracle_right = _right(oracle, tensors, bundle.manifest.space.default, case.labels)
    print(f"{case.name}: {len(case.labels)} test images, oracle {oracle_right.mean():.4f}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as state:
        model = EdgeModel.load(
            arguments.bundle, threads=options.threads, state_dir=state, budget=Budget(), seed=arguments.seed
        )
        session, form = open_quickest(bundle, options, StateDir.open(state), runtime_versions())
        with model:
            points = [
                _point(fraction, case, model, session, oracle, tensors, oracle_right)
                for fraction in arguments.fractions
            ]
    return {
        "form": form,
        "name": case.name,
        "search_images": len(case.search),
        "test_images": len(case.labels),
        "oracle_accuracy": float(oracle_right.mean()),
        "points": points,
    }


def _point(
    fraction: float,
    case: Case,
    model: EdgeModel,
    session: Session,
    oracle: Session,
    tensors: npt.NDArray[np.float32],
    oracle_right: npt.NDArray[np.float64],
) -> dict[str, Any]:
    """Search until the median comes close to `fraction` of the oracle's from below, then test the best that was found.

    `adapt` keeps the p95 inside its budget, with room for the next measurement; the curve is about medians. So the
    budget that is given to it is moved by what the medians say. What is kept is decided by the unlabelled quality.
    """
    point: dict[str, Any] = {"fraction": fraction}
    found: list[tuple[float, float, float, AdaptStatus]] = []
    slack = FIRST_SLACK
    reason = "every subnet found was slower"
    for seed in range(TRIES):
        _, oracle_p95_ms, _ = _timed(session, oracle, model.space.default, seed)
        model.swap("full", "the next point of the curve")
        try:
            budget = Budget(latency_ms=slack * fraction * oracle_p95_ms)
            status = model.adapt(case.search, budget=budget, wait=True)
        except BudgetError as error:
            reason, slack = str(error), 1.1 * slack
            continue
        ratio, _, oracle_ms = _timed(session, oracle, status.active, seed)
        if ratio <= fraction:
            quality = next(c.score.quality for c in status.candidates if c.score.gates == status.active)
            found.append((quality, ratio, oracle_ms, status))
        if CLOSE * fraction <= ratio <= fraction:
            break
        slack *= 0.98 * fraction / ratio
    if not found:
        return point | {"reachable": False, "reason": reason}
    quality, ratio, oracle_ms, status = max(found, key=lambda entry: entry[0])
    right = _right(session, tensors, status.active, case.labels)
    gap = Comparison.of(right, oracle_right)
    point |= _found(status, ratio, oracle_ms) | {"reachable": True, "accuracy": float(right.mean()), "quality": quality}
    point |= {"points_to_oracle": 100 * gap.difference, "interval": [100 * gap.low, 100 * gap.high]}
    print(f"  {fraction:.0%}: {status.active} ratio {ratio:.3f} accuracy {right.mean():.4f}", file=sys.stderr)
    return point


def _found(status: AdaptStatus, ratio: float, oracle_ms: float) -> dict[str, Any]:
    labels = [group.labels for group in status.active.space.groups]
    active = zip(labels, status.active.values, status.active.active, strict=True)
    return {
        "gates": str(status.active),
        "alternatives": [names[int(value)] for names, value, on in active if on and isinstance(value, int)],
        "median_ratio": ratio,
        "oracle_median_ms": oracle_ms,
        "adapt_seconds": status.seconds,
        "reason": status.reason,
        "limit_p95_ms": status.limit_ms,
        "measured": [
            {"gates": str(c.score.gates), "p95_ms": c.score.latency_ms, "quality": c.score.quality, "fate": c.fate}
            for c in status.candidates
            if c.score.measured
        ],
    }


def _timed(session: Session, oracle: Session, gates: Gates, seed: int) -> tuple[float, float, float]:
    """Median of the subnet over that of the oracle, the oracle's p95 and its median, from interleaved rounds."""
    inputs = random_inputs(session.inputs, seed=seed)
    pair = [Candidate(session, inputs, gates), Candidate(oracle, inputs, gates)]
    with session.hold([gates]):
        subnet, reference = measure_candidates(pair, runs=RUNS, seed=seed)
    return subnet.p50_ms / reference.p50_ms, reference.p95_ms, reference.p50_ms


def _right(session: Session, tensors: npt.NDArray[np.float32], gates: Gates, labels: Labels) -> npt.NDArray[np.float64]:
    """For each image 1.0 where the subnet names the right class, else 0.0."""
    name = session.inputs[0].name
    logits = [
        next(iter(session.run({name: tensors[i : i + BATCH]}, gates).values())) for i in range(0, len(tensors), BATCH)
    ]
    return np.asarray(np.concatenate(logits).argmax(1) == labels, np.float64)


if __name__ == "__main__":
    sys.exit(common.run("curve", _bench, _arguments()))
