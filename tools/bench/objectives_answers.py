"""What many subnets of one bundle answer on labelled images: class probabilities, kept in the work folder.

Subnets are drawn around the best by the bundle's prior at each of a few latencies, ever more warmly: from what a search
would propose to nearly random ones. Probabilities are kept as float16, one file per subnet, so that a stopped run goes
on.
"""

# ruff: noqa: TID251 - a bench may use the builder's data sets; only the runtime must not

from __future__ import annotations

import hashlib
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.files import write_atomically
from edge_runtime.additive import AdditiveCost, Plan
from edge_runtime.backends import Session, SessionOptions, open_session
from edge_runtime.bundle import Bundle
from edge_runtime.gates import Gates
from edge_runtime.inputs import preprocess
from edge_runtime.measure import calibrate
from edge_runtime.quality import Values, probabilities

__all__ = ["LEVELS", "Answers", "answers_of"]

LEVELS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Limits of the predicted latency, as shares of the full subnet's."""

BATCH = 50
WARMEST, TRIES = 2.0, 4
"""Temperature of the last draw at a level, in units of `Plan.scale`, and draws for each subnet that is wanted."""

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Answers:
    """Predicted latency of subnets, and their probabilities on labelled images."""

    latency: Values
    """Predicted latency as a share of the full subnet's, float64 [S]; the full subnet is the first."""

    damage: Values
    """By the bundle's prior, lower is better, float64 [S]."""

    shares: npt.NDArray[np.float16]
    """Probabilities [S, N, K]."""

    labels: Labels
    """[N]."""


def answers_of(bundle: Bundle, images: Images, labels: Labels, subnets: int, work: Path, seed: int) -> Answers:
    """Run at least `subnets` subnets on all images, or read what an earlier run kept.

    Args:
        bundle: whose subnets.
        images: uint8 [N, H, W, 3], of any size.
        labels: [N].
        subnets: how many.
        work: folder of the kept probabilities, for this bundle and these images.
        seed: of the draws.
    """
    spec, space = bundle.manifest.preprocessing, bundle.manifest.space
    tensors = np.stack([preprocess(image, spec) for image in images])
    about = f"{bundle.digest} {subnets} {seed}".encode()
    folder = work / hashlib.sha256(about + tensors.tobytes()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    session = open_session(bundle, SessionOptions(threads=1))
    name = session.inputs[0].name
    rows = _kept_subnets(folder / "subnets.json", bundle, session, subnets, seed)
    shares = []
    for number, row in enumerate(rows):
        path = folder / f"{number}.npy"
        if not path.exists():
            print(f"\r{bundle.manifest.name}: subnet {number + 1} of {len(rows)}", end="", file=sys.stderr, flush=True)
            parts = [tensors[start : start + BATCH] for start in range(0, len(tensors), BATCH)]
            logits = [next(iter(session.run({name: part}, space.gates(row["gates"])).values())) for part in parts]
            _keep(path, probabilities(np.concatenate(logits)).astype(np.float16))
        shares.append(np.load(path))
    session.close()
    latency, damage = (np.array([row[key] for row in rows]) for key in ("latency", "damage"))
    return Answers(latency, damage, np.stack(shares), labels)


def _kept_subnets(path: Path, bundle: Bundle, session: Session, count: int, seed: int) -> list[dict[str, Any]]:
    """Values, latency and damage of the subnets: kept, as a latency table is not the same twice."""
    if not path.exists():
        cost = calibrate(bundle, session, SessionOptions(threads=1), seed=seed).cost
        damage = AdditiveCost.damage(bundle.manifest.space, bundle.manifest.prior)
        full = cost(bundle.manifest.space.default)
        rows = [
            {"gates": list(gates.values), "latency": cost(gates) / full, "damage": damage(gates)}
            for gates in _subnets(cost, damage, count, seed)
        ]
        write_atomically(path, json.dumps(rows).encode())
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _keep(path: Path, shares: npt.NDArray[np.float16]) -> None:
    with path.with_suffix(".part").open("wb") as file:
        np.save(file, shares)
    path.with_suffix(".part").replace(path)


def _subnets(cost: AdditiveCost, damage: AdditiveCost, count: int, seed: int) -> list[Gates]:
    rng, full = random.Random(seed), cost.space.default
    found, share = {full: None}, -(-count // len(LEVELS))
    for level in LEVELS:
        plan, before = Plan(cost, damage, level * cost(full)), len(found)
        for attempt in range(TRIES * share if plan.feasible else 0):  # the lowest may be out of reach
            gates = plan.draw(rng, plan.scale * WARMEST * (attempt / (TRIES * share)) ** 2)
            if len(found) < before + share and plan.fits(gates):
                found[gates] = None
    return list(found)
