"""Can bad images talk an adaptation into a bad subnet? Buffers of one class, black frames, noise and haze.

    python tools/bench/poison.py scenes --work work/poison
    python tools/bench/poison.py runway --data DIR --work work/poison

Each stream is a buffer that a broken or fogged camera could fill, in part or wholly, a latency budget and an active
subnet, and ends with what the adaptation chooses without labels. That subnet then answers clean test images that were
in no buffer. Its floor there is `FLOOR` points of agreement with the full subnet below what the bundle's prior
recommends for the same latency. Subnets are proposed by the machine's latency table; what finalists take differs from
it by some percent for every alternative. `without the bound` is the same search where the prior does not bound what may
be chosen. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import numpy.typing as npt
from search_cases import CASES
from search_ours import adapt_by_table
from search_table import latency_table

from edge_runtime.adaptation import trust
from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.additive import AdditiveCost, Plan
from edge_runtime.backends import Session, SessionOptions, open_session
from edge_runtime.bundle import Bundle, Preprocessing
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import Gates
from edge_runtime.inputs import Frame, preprocess_all
from edge_runtime.measure import machine_lock
from edge_runtime.objectives import Budget

FLOOR = 5.0
"""Points of agreement on clean images that a stream may end below the bundle's recommendation."""

FRACTIONS = (0.5, 0.95)
BUFFER = (16, 256)
CLEAN_SHARE = 0.2
"""At most so much of a buffer is good; of every second stream nothing is."""
TABLE_ERROR = 0.1
"""Standard deviation of what an alternative takes, relative to the table."""
BATCH = 50
NO_HURRY_S = 1e6
UNBOUNDED = 1e9

Labels = npt.NDArray[np.int64]
Poison = Callable[[Frame, Labels, np.random.Generator], Frame]


def _one_class(images: Frame, labels: Labels, rng: np.random.Generator) -> Frame:
    return images[labels == rng.choice(labels)]


def _black(images: Frame, labels: Labels, rng: np.random.Generator) -> Frame:
    return np.zeros_like(images)


def _noise(images: Frame, labels: Labels, rng: np.random.Generator) -> Frame:
    return rng.integers(0, 256, images.shape, np.uint8)


def _haze(images: Frame, labels: Labels, rng: np.random.Generator) -> Frame:
    density, grey = rng.uniform(0.8, 1.0), rng.uniform(120, 255)
    return np.asarray((1 - density) * images + density * grey, np.uint8)


POISONS: Mapping[str, Poison] = {"one class": _one_class, "black": _black, "noise": _noise, "haze": _haze}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--bundle", type=Path, help="the elastic model, of the case's classes; needed by tiny")
    parser.add_argument("--data", type=Path, default=os.environ.get("NNF_DATA"), help="data folder ($NNF_DATA)")
    parser.add_argument("--work", type=Path, default=Path("work/poison"), help="holds the latency table")
    parser.add_argument("--streams", type=int, default=200, help="of all poisons together")
    parser.add_argument("--images", type=int, default=1000, help="test images at most: one half fills the buffers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the result to this file too")
    return parser.parse_args()


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    case, options = CASES[arguments.case], SessionOptions(threads=1)
    bundle = Bundle.read(case.bundle_or(arguments.bundle))
    loaded = case.images(bundle, arguments.data, arguments.images, arguments.seed)
    images, labels = loaded.frames, loaded.labels
    folder = arguments.work / f"{arguments.case}-{bundle.digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    session = open_session(bundle, options)
    alone = machine_lock("tools/bench/poison.py")
    table, _ = latency_table(folder / "table.json", bundle, session, options, alone)
    half = len(images) // 2
    clean = _Clean(session, images[half:], bundle.manifest.preprocessing)
    prior = AdditiveCost.damage(table.cost.space, bundle.manifest.prior)
    streams = _Streams(session, clean, table.cost, prior, images[:half], labels[:half])
    names = [list(POISONS)[number % len(POISONS)] for number in range(arguments.streams)]
    rows: dict[str, list[dict[str, Any]]] = {"with the bound": [], "without the bound": []}
    for number, name in enumerate(names):
        print(f"stream {number + 1} of {len(names)}: {name}", file=sys.stderr, flush=True)
        for kind, found in rows.items():
            found.append(streams.run(name, arguments.seed + number, bounded=kind == "with the bound"))
    session.close()
    return {
        "case": arguments.case,
        "bundle": bundle.digest,
        "seed": arguments.seed,
        "floor_points": FLOOR,
        "table_error": TABLE_ERROR,
        "clean_images": len(images) - half,
        **{kind: _summary(found) | {"worst": _worst(found)} for kind, found in rows.items()},
        "by_poison": {
            kind: {name: _summary([row for row in found if row["poison"] == name]) for name in dict.fromkeys(names)}
            for kind, found in rows.items()
        },
    }


@dataclass(frozen=True, slots=True)
class _Clean:
    """Images that are in no buffer, and how often subnets agree with the full one there."""

    session: Session
    images: Frame
    preprocessing: Preprocessing

    def agreement(self, gates: Gates) -> float:
        """Percent of the images on which a subnet names the full subnet's class."""
        return 100 * float((self._classes(gates) == self._classes(gates.space.default)).mean())

    def _classes(self, gates: Gates) -> Labels:
        name, output = self.session.inputs[0].name, self.session.outputs[0].name
        found = [
            self.session.run({name: preprocess_all(self.images[start : start + BATCH], self.preprocessing)}, gates)[
                output
            ]
            for start in range(0, len(self.images), BATCH)
        ]
        return np.asarray(np.concatenate(found).argmax(1), np.int64)


@dataclass(frozen=True, slots=True)
class _Streams:
    """What all streams share."""

    session: Session
    clean: _Clean
    cost: AdditiveCost
    prior: AdditiveCost
    images: Frame
    labels: Labels

    def run(self, poison: str, seed: int, *, bounded: bool) -> dict[str, Any]:
        """One stream: its buffer, the adaptation, and what the chosen subnet is worth on clean images."""
        rng = np.random.default_rng(seed)
        full_ms = self.cost(self.cost.space.default)
        limit_ms, before_ms = (share * full_ms for share in rng.uniform(*FRACTIONS, size=2))
        buffer = self._buffer(poison, rng, clean_share=rng.integers(2) * rng.uniform(0, CLEAN_SHARE))
        # Every second one was adapted to another limit before.
        current = Plan(self.cost, self.prior, before_ms).best() if rng.integers(2) else self.cost.space.default
        chosen = self._adapted(buffer, AdaptPlan(Budget(latency_ms=limit_ms), seed=seed), current, bounded)
        recommended = Plan(self.cost, self.prior, limit_ms).best()
        found, wanted = self.clean.agreement(chosen), self.clean.agreement(recommended)
        row = {"poison": poison, "seed": seed, "images": len(buffer), "limit": limit_ms / full_ms}
        row |= {"gates": str(chosen), "agreement": found, "recommended": wanted}
        return row | {"behind": wanted - found, "under_floor": found < wanted - FLOOR}

    def _buffer(self, poison: str, rng: np.random.Generator, clean_share: float) -> Frame:
        size = int(rng.integers(*BUFFER))
        bad = POISONS[poison](self.images, self.labels, rng)
        bad = bad[rng.integers(len(bad), size=size)]
        good = self.images[rng.integers(len(self.images), size=int(clean_share * size))]
        return rng.permutation(np.concatenate([bad[: size - len(good)], good]))

    def _adapted(self, buffer: Frame, plan: AdaptPlan, current: Gates, bounded: bool) -> Gates:
        evaluator = Evaluator(self.session, current.space.default, buffer, self.clean.preprocessing)
        plan, measured = replace(plan, seconds=NO_HURRY_S), self._measured(plan.seed)
        before = trust.SLACK, trust.LEAST_SLACK
        if not bounded:  # finite, as what the images tell is a factor of it, and may be 0
            trust.SLACK = trust.LEAST_SLACK = UNBOUNDED
        try:
            return adapt_by_table(self.cost, measured, self.prior, evaluator, plan, current, lambda: 0)
        finally:
            trust.SLACK, trust.LEAST_SLACK = before

    def _measured(self, seed: int) -> AdditiveCost:
        """What subnets really take."""
        rng = np.random.default_rng(seed)
        rows = (tuple(entry * rng.lognormal(0, TABLE_ERROR) for entry in row) for row in self.cost.entries)
        return AdditiveCost(self.cost.space, self.cost.base, tuple(rows))


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    behind = np.array([row["behind"] for row in rows])
    return {
        "streams": len(rows),
        "under_floor": sum(row["under_floor"] for row in rows),
        "behind_mean_points": round(float(behind.mean()), 2),
        "behind_most_points": round(float(behind.max()), 2),
    }


def _worst(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return max(rows, key=lambda row: float(row["behind"]))


if __name__ == "__main__":
    sys.exit(common.run("poison", _bench, _arguments(), alone=False))
