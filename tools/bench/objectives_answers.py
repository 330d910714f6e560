"""What many subnets of one bundle answer on labelled images: class probabilities, kept in the work folder.

Subnets are drawn around the best by the bundle's prior at each of a few latencies, ever more warmly: from what a search
would propose to nearly random ones. The latency table and probabilities, as float16, one file per subnet, are kept, so
that a stopped run goes on.
"""

from __future__ import annotations

import hashlib
import random
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from search_table import latency_table

from edge_runtime.additive import AdditiveCost, Plan
from edge_runtime.backends import SessionOptions, open_session
from edge_runtime.bundle import Bundle
from edge_runtime.gates import Gates
from edge_runtime.inputs import preprocess
from edge_runtime.measure import machine_lock
from edge_runtime.quality import Values, probabilities

__all__ = ["LEVELS", "Answers", "answers_of"]

LEVELS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Limits of the predicted latency, as shares of the full subnet's."""

BATCH = 50
WARMEST, TRIES = 2.0, 20
"""Temperature of the last place at a level, in units of `Plan.scale`, and draws until one is new."""

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
    """Run about `subnets` subnets, as far as the space has them, on all images, or read what an earlier run kept.

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
    folder = work / hashlib.sha256(bundle.digest.encode() + tensors.tobytes()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    options = SessionOptions(threads=1)
    session = open_session(bundle, options)
    name = session.inputs[0].name
    table, _ = latency_table(folder / "table.json", bundle, session, options, machine_lock("tools/bench/objectives.py"))
    damage = AdditiveCost.damage(space, bundle.manifest.prior)
    chosen, shares = _subnets(table.cost, damage, subnets, seed), []
    for number, gates in enumerate(chosen):
        path = folder / f"{hashlib.sha256(str(gates).encode()).hexdigest()[:16]}.npy"
        if not path.exists():
            print(f"\r{bundle.manifest.name}: {number + 1} of {len(chosen)}", end="", file=sys.stderr, flush=True)
            parts = [tensors[start : start + BATCH] for start in range(0, len(tensors), BATCH)]
            logits = [next(iter(session.run({name: part}, gates).values())) for part in parts]
            _keep(path, probabilities(np.concatenate(logits)).astype(np.float16))
        shares.append(np.load(path))
    session.close()
    latency = np.array([table.cost(gates) for gates in chosen]) / table.cost(space.default)
    return Answers(latency, np.array([damage(gates) for gates in chosen]), np.stack(shares), labels)


def _keep(path: Path, shares: npt.NDArray[np.float16]) -> None:
    with path.with_suffix(".part").open("wb") as file:
        np.save(file, shares)
    path.with_suffix(".part").replace(path)


def _subnets(cost: AdditiveCost, damage: AdditiveCost, count: int, seed: int) -> list[Gates]:
    rng, full = random.Random(seed), cost.space.default
    found, share = {full: None}, -(-count // len(LEVELS))
    for level in LEVELS:
        plan = Plan(cost, damage, level * cost(full))
        for place in range(share if plan.feasible else 0):  # the lowest may be out of reach
            warmth = plan.scale * WARMEST * (place / share) ** 2
            drawn = (plan.draw(rng, warmth) for _ in range(TRIES))
            found |= dict.fromkeys(islice((gates for gates in drawn if gates not in found), 1))
    return list(found)
