"""How long `EdgeModel.load` takes in a new process: the first time, when the model is prepared, and every later time.

Each load is made in a process of its own, after `import edge_runtime`: `import_ms` is that import, `load_ms` the call
with all that it imports itself. Then the model is loaded once more there, when nothing is left to import: of that
`library_ms` is the creation and the runs of onnxruntime's sessions, and `ours_ms` the rest. Medians over the rounds.
The last line of output is one JSON object.

    python tools/bench/load.py [--bundle FILE] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "edge_runtime/assets/demo.nnf"


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    first, second = [], []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as state:
            first.append(_load(arguments.bundle, state))
            second.append(_load(arguments.bundle, state))
    return {"bundle": Path(arguments.bundle).name, "first": _medians(first), "second": _medians(second)}


def _load(bundle: str, state: str) -> dict[str, float]:
    words = [sys.executable, __file__, "--bundle", bundle, "--child", state]
    began = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    process_ms = (time.perf_counter() - began) * 1e3
    taken: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return taken | {"process_ms": process_ms}


def _medians(loads: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(load[name] for load in loads) for name in loads[0]}


def _child(bundle: str, state: str) -> None:
    """Two loads, timed; what onnxruntime does is timed by wrapping the two calls that it is entered by."""
    began = time.perf_counter()
    from edge_runtime import EdgeModel

    imported = time.perf_counter()
    EdgeModel.load(bundle, state_dir=state, threads=1).close()
    loaded = time.perf_counter()

    from edge_runtime.backends.onnx.telemetry import import_onnxruntime

    session, library_s = import_onnxruntime().InferenceSession, [0.0]

    def timed(call: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            at = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                library_s[0] += time.perf_counter() - at

        return wrapper

    session.__init__, session.run = timed(session.__init__), timed(session.run)
    again = time.perf_counter()
    model = EdgeModel.load(bundle, state_dir=state, threads=1)
    again_ms, library_ms = (time.perf_counter() - again) * 1e3, library_s[0] * 1e3
    model.close()
    taken = {"import_ms": (imported - began) * 1e3, "load_ms": (loaded - imported) * 1e3}
    print(json.dumps(taken | {"library_ms": library_ms, "ours_ms": again_ms - library_ms}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default=str(DEMO), help="default: the demo's")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of loads (default 7)")
    parser.add_argument("--json", help="write the result to this file too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    if given.child:
        _child(given.bundle, given.child)
    else:
        import common  # not above: it imports what the child is to be timed with

        sys.exit(common.run("load", _bench, given))
