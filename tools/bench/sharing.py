"""What does a search save when subnets with the same beginning run it once? The same search with and without, in turns.

Each round runs the search part of `adapt` (everything before finalists are measured) on the same unlabelled images
twice: with each subnet run whole, and with shared beginnings. Both must ask for the same subnets and score them alike,
bit by bit. `ratio` is the busy time with sharing over that without, the median over rounds; `again` that of the second
run without over the first, for the noise. The last line is one JSON object.

    python tools/bench/sharing.py scenes
    python tools/bench/sharing.py runway --data DIR
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import common
import numpy as np
from search_cases import CASES

from edge_runtime.adaptation import AdaptJob, AdaptPlan, Finals
from edge_runtime.additive import AdditiveCost
from edge_runtime.backends import Session, SessionOptions, runtime_versions
from edge_runtime.backends.features import FeatureCache
from edge_runtime.bundle import Bundle
from edge_runtime.errors import EdgeError
from edge_runtime.evaluate import Evaluator
from edge_runtime.inputs import Frame
from edge_runtime.measure import LatencyModel, calibrate, random_inputs
from edge_runtime.model.compile import open_quickest
from edge_runtime.model.jobs import MOST_FEATURE_BYTES
from edge_runtime.objectives import Budget
from edge_runtime.state import StateDir

IMAGES, PATIENCE_S = 256, 3600.0


@dataclass(frozen=True, slots=True)
class Bench:
    """What all runs share."""

    bundle: Bundle
    session: Session
    table: LatencyModel
    images: Frame
    fraction: float
    batch: int

    def searched(self, max_bytes: int | None) -> tuple[float, dict[Any, Any]]:
        """Seconds of a search with so much memory for shared features (None: each subnet whole), and all values."""
        full, spec = self.bundle.manifest.space.default, self.bundle.manifest.preprocessing
        features = None if max_bytes is None else FeatureCache(max_bytes)
        evaluator = Evaluator(self.session, full, self.images, spec, batch_size=self.batch, features=features)
        budget = Budget(latency_ms=self.fraction * self.table.predict_p95_ms(full))
        job = AdaptJob(
            finals=Finals(self.session, random_inputs(self.session.inputs, seed=0), seed=0),
            evaluator=evaluator,
            calibrate=lambda: self.table,
            prior=AdditiveCost.damage(self.bundle.manifest.space, self.bundle.manifest.prior),
            current=full,
            plan=AdaptPlan(budget, seconds=PATIENCE_S),
        )
        began = time.perf_counter()
        for _ in job.steps():
            if job.phase == "measure":
                break
        return time.perf_counter() - began, evaluator.known()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--bundle", type=Path, help="the elastic model, of the case's classes; needed by tiny")
    parser.add_argument("--data", type=Path, default=os.environ.get("NNF_DATA"), help="data folder ($NNF_DATA)")
    parser.add_argument("--fraction", type=float, default=0.6, help="budget as a share of the full subnet's p95")
    parser.add_argument("--batch", type=common.at_least(1), default=32, help="images per run; 4 in the background")
    parser.add_argument("--rounds", type=common.at_least(1), default=5)
    parser.add_argument("--images", type=common.at_least(2), default=IMAGES)
    parser.add_argument("--json", help="write the result to this file too")
    return parser.parse_args()


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    case, options = CASES[arguments.case], SessionOptions(threads=1)
    bundle = Bundle.read(case.bundle_or(arguments.bundle))
    images = case.images(bundle, arguments.data, arguments.images, 0).frames
    with tempfile.TemporaryDirectory() as folder:
        session, form = open_quickest(bundle, options, StateDir.open(folder), runtime_versions())
        table = calibrate(bundle, session, options, seed=0, scratch=Path(folder))
        bench = Bench(bundle, session, table, images, arguments.fraction, arguments.batch)
        found = _rounds(bench, arguments.rounds)
        session.close()
    return {"case": arguments.case, "bundle": bundle.digest, "form": form, "batch": arguments.batch} | found


def _rounds(bench: Bench, rounds: int) -> dict[str, Any]:
    ratios, again, seconds = [], [], []
    for _ in range(rounds):
        whole, wanted = bench.searched(None)
        shared, found = bench.searched(MOST_FEATURE_BYTES)
        if found != wanted:
            raise EdgeError("with shared beginnings the search found other values")
        second, _ = bench.searched(None)
        ratios.append(2 * shared / (whole + second))
        again.append(second / whole)
        seconds.append(whole)
        print(f"{shared:.2f} s with, {whole:.2f} and {second:.2f} without", file=sys.stderr, flush=True)
    runs = sum(len(values) for values in wanted.values())
    return {
        "fraction": bench.fraction,
        "images": len(bench.images),
        "subnets": len(wanted),
        "image_runs": runs,
        "rounds": rounds,
        "feature_bytes": MOST_FEATURE_BYTES,
        "seconds_whole": median(seconds),
        "ratio": median(ratios),
        "ratios": [round(float(ratio), 4) for ratio in ratios],
        "again": median(again),
        "spread": float(np.std(ratios)),
    }


if __name__ == "__main__":
    sys.exit(common.run("sharing", _bench, _arguments()))
