"""Does `EdgeModel.adapt` keep its word? Repeated searches from nothing on the same unlabelled images.

Each repetition searches with an empty state directory and then measures the chosen subnet again, on its own. Reported:
seconds, whether the p95 of the search and that of the second measurement are inside the budget, and whether any
measured finalist that fits is significantly better. The last line of output is one JSON object.

    python tools/bench/adapt.py --bundle edge_runtime/assets/demo.nnf --images edge_runtime/assets/demo_images.npz
    python tools/bench/adapt.py --bundle tests/data/runway.nnf --data DIR      (FOD-A validation crops)
"""

# ruff: noqa: TID251 - a bench may use the builder's data sets; only the runtime must not

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builder.fod import load_crops
from edge_runtime import Budget, EdgeModel, sense
from edge_runtime.backends import SessionOptions, open_session, runtime_versions
from edge_runtime.bundle import Bundle
from edge_runtime.errors import EdgeError
from edge_runtime.inputs import Frame, load_npz
from edge_runtime.measure import machine_lock, measure, random_inputs

IMAGES = 256
RUNS = 300


def main() -> int:
    """Run the repetitions; exit code 0, or the error's own with its message on stderr."""
    arguments = _arguments()
    try:
        with machine_lock("tools/bench/adapt.py"):
            result = _bench(arguments)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--images", help=".npz of images")
    parser.add_argument("--data", default=os.environ.get("NNF_DATA"), help="folder of fod_a_224px.npz ($NNF_DATA)")
    parser.add_argument("--fraction", type=float, default=0.6, help="budget as a share of the full subnet's p95")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the result to this file too")
    return parser.parse_args()


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.images:
        images: Sequence[Frame] = load_npz(arguments.images, limit=IMAGES).images
    else:
        crops = load_crops(Path(arguments.data)).split("validation")
        images = list(crops.images[:: max(1, len(crops) // IMAGES)][:IMAGES])
    options = SessionOptions(threads=arguments.threads)
    bundle = Bundle.read(arguments.bundle)
    session = open_session(bundle, options)
    inputs = random_inputs(session.inputs, seed=0)
    full_ms = measure(session, inputs, [bundle.manifest.space.default], runs=RUNS, seed=0)[0].p95_ms
    budget = Budget(latency_ms=arguments.fraction * full_ms)
    runs = []
    for seed in range(arguments.repeats):
        with (
            tempfile.TemporaryDirectory() as state,
            EdgeModel.load(
                arguments.bundle, budget=Budget(), threads=options.threads, state_dir=state, seed=seed
            ) as model,
        ):
            runs.append(_once(model, images, budget))
        again = measure(session, inputs, [bundle.manifest.space.parse(runs[-1]["gates"])], runs=RUNS, seed=seed)[0]
        runs[-1] |= {"again_p95_ms": again.p95_ms, "again_inside": again.p95_ms <= budget.latency_ms}
        print(json.dumps(runs[-1]), file=sys.stderr)
    return {
        "schema": "nnf-edge/bench-adapt/1",
        "command": shlex.join(["python", *sys.argv]),
        "bundle": bundle.digest,
        "images": len(images),
        "budget_ms": budget.latency_ms,
        "full_p95_ms": full_ms,
        "device": sense.device_context(runtime_versions()),
        "longest_seconds": max(run["seconds"] for run in runs),
        "inside": sum(run["inside"] for run in runs),
        "again_inside": sum(run["again_inside"] for run in runs),
        "better_finalists": sum(run["better_finalists"] for run in runs),
        "repeats": len(runs),
        "runs": runs,
    }


def _once(model: EdgeModel, images: Sequence[Frame], budget: Budget) -> dict[str, Any]:
    status = model.adapt(images, budget=budget, wait=True)
    chosen = next(c for c in status.candidates if c.score.gates == status.active)
    rivals = [c for c in status.candidates if c.score.measured and c.fate not in ("over budget", "reference")]
    return {
        "gates": str(status.active),
        "seconds": status.seconds,
        "p95_ms": chosen.score.latency_ms,
        "quality": chosen.score.quality,
        "inside": chosen.score.latency_ms <= budget.latency_ms,
        # Intervals of single scores that do not overlap: stricter evidence than the paired one the choice is made by.
        "better_finalists": sum(c.score.low > chosen.score.high for c in rivals),
        "reason": status.reason,
        "ended_early": status.ended_early,
    }


if __name__ == "__main__":
    sys.exit(main())
