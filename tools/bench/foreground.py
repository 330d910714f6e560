"""What a search in the background costs the loop in front of it: the p99 of its frames, and the CPU that is taken.

    python tools/bench/foreground.py
    python tools/bench/foreground.py --bundle tests/data/runway.nnf --data DIR

A loop runs frames at a steady pace, as a camera brings them. Rounds without a search, with one from its beginning to
its end, and without one again take turns; the third over the first is the A/A ratio, what this machine does to a
comparison of nothing. The CPU is that of all threads of the process but the loop's, over the time of the round, beside
the share of one CPU that the profile allows. The last line is one JSON object.
"""

# ruff: noqa: TID251 - a bench may use the builder's data sets; only the runtime must not

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

from builder.fod import load_crops
from edge_runtime import Budget, EdgeModel
from edge_runtime.cli.assets import demo_bundle, demo_images
from edge_runtime.inputs import Frame, load_npz
from edge_runtime.objectives import percentile

IMAGES = 256
WARM_UP_FRAMES = 30
MOST_FRAMES = 100_000
"""A search ends by itself long before."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", help="the bundled one where it is not given")
    parser.add_argument("--data", type=Path, default=os.environ.get("NNF_DATA"), help="folder of fod_a_224px.npz")
    parser.add_argument("--rounds", type=int, default=10, help="of each kind")
    parser.add_argument("--frames", type=int, default=300, help="of each round without a search")
    parser.add_argument("--fps", type=float, default=50.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the result to this file too")
    return parser.parse_args()


@dataclass(frozen=True, slots=True)
class _Round:
    """What one round saw."""

    latencies_ns: list[int]
    others_cpu: float
    """CPU seconds of all other threads per second."""

    def q_ms(self, q: int) -> float:
        return percentile(sorted(self.latencies_ns), q) / 1e6


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    images = _images(arguments)
    rounds: dict[str, list[_Round]] = {"without": [], "with": [], "again": []}
    with (
        tempfile.TemporaryDirectory() as state,
        EdgeModel.load(
            arguments.bundle or demo_bundle(), budget=Budget(), threads=arguments.threads, state_dir=state
        ) as model,
    ):
        model.adapt(images, wait=True)  # the latency table is measured once, and not in a round
        model.swap("full")
        _frames(model, images, WARM_UP_FRAMES, arguments.fps)
        rng = np.random.default_rng(0)
        for number in range(arguments.rounds):
            rounds["without"].append(_frames(model, images, arguments.frames, arguments.fps))
            model.adapt(rng.permutation(images))
            rounds["with"].append(_frames(model, images, MOST_FRAMES, arguments.fps, searching=True))
            model.swap("full")
            _frames(model, images, WARM_UP_FRAMES, arguments.fps)
            rounds["again"].append(_frames(model, images, arguments.frames, arguments.fps))
            print(f"round {number + 1}: {[round(kind[-1].q_ms(99), 3) for kind in rounds.values()]}", file=sys.stderr)
        allowed = model.profile.limits.adapt_cpu_percent / 100
        digest = model.bundle.digest
    return {"bundle": digest, "fps": arguments.fps, "threads": arguments.threads} | _result(rounds, allowed)


def _frames(model: EdgeModel, images: Frame, count: int, fps: float, *, searching: bool = False) -> _Round:
    """Run so many frames at a pace; where a search runs, only while it does."""
    taken: list[int] = []
    began, cpu = time.perf_counter(), _others_cpu()
    for number in range(count):
        time.sleep(max(0.0, began + number / fps - time.perf_counter()))
        phase = model.stats().search  # in every round, as it costs a little
        if searching and phase in ("done", "failed", "idle"):
            break
        frame = images[number % len(images)]
        start_ns = time.perf_counter_ns()
        model(frame)
        taken.append(time.perf_counter_ns() - start_ns)
    return _Round(taken, (_others_cpu() - cpu) / (time.perf_counter() - began))


def _others_cpu() -> float:
    """CPU seconds of the process so far, less those of this thread."""
    return time.process_time() - time.thread_time()


def _result(rounds: dict[str, list[_Round]], allowed: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for q in (50, 95, 99):
        pairs = list(zip(rounds["without"], rounds["with"], rounds["again"], strict=True))
        found[f"p{q}_ratio"] = round(median(b.q_ms(q) / ((a.q_ms(q) + c.q_ms(q)) / 2) for a, b, c in pairs), 4)
        found[f"p{q}_ratio_of_nothing"] = round(median(c.q_ms(q) / a.q_ms(q) for a, _, c in pairs), 4)
    pooled = {kind: sorted(ns for one in rows for ns in one.latencies_ns) for kind, rows in rounds.items()}
    calm = sorted(pooled["without"] + pooled["again"])
    taken = [b.others_cpu - (a.others_cpu + c.others_cpu) / 2 for a, b, c in zip(*rounds.values(), strict=True)]
    return found | {
        "p99_ms": {kind: round(percentile(values, 99) / 1e6, 4) for kind, values in pooled.items()},
        "p99_ratio_pooled": round(percentile(pooled["with"], 99) / percentile(calm, 99), 4),
        "frames": {kind: len(values) for kind, values in pooled.items()},
        "cpu_allowed": allowed,
        "cpu_taken": round(float(np.mean(taken)), 4),
        "cpu_taken_each": [round(share, 4) for share in taken],
        "rounds": [{kind: round(rows[i].q_ms(99), 4) for kind, rows in rounds.items()} for i in range(len(taken))],
    }


def _images(arguments: argparse.Namespace) -> Frame:
    """256 images uint8 [n, H, W, 3]; of fewer each several times."""
    if arguments.bundle is None:
        found = np.stack(load_npz(demo_images()).images)
    else:
        crops = load_crops(arguments.data).split("validation")
        found = crops.images[:: max(1, len(crops) // IMAGES)]
    return np.asarray(found[np.arange(IMAGES) % len(found)])


if __name__ == "__main__":
    sys.exit(common.run("foreground", _bench, _arguments()))
