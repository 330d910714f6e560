"""The one latency table of a bundle that all searches plan with, and what an image of a batch takes; both are kept."""

from __future__ import annotations

import json
import statistics
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from builder.files import write_atomically  # noqa: TID251 - a bench may use the builder; only the runtime must not
from edge_runtime.backends import Session, SessionOptions
from edge_runtime.bundle import Bundle
from edge_runtime.measure import Candidate, LatencyModel, calibrate, measure_candidates, random_inputs
from edge_runtime.seeds import covering_vectors

__all__ = ["BATCH", "latency_table"]

BATCH = 32
"""Images per run of the runtime's evaluator."""

RUNS = 5


def latency_table(
    path: Path, bundle: Bundle, session: Session, options: SessionOptions, alone: AbstractContextManager[object]
) -> tuple[LatencyModel, float]:
    """The table, and the time of one image in a batch over its latency by the table.

    Args:
        path: where they are kept: a table is not the same twice.
        bundle: of the network.
        session: where it runs.
        options: what `session` was opened with.
        alone: entered while something is timed.
    """
    if not path.exists():
        with alone, tempfile.TemporaryDirectory() as scratch:
            table = calibrate(bundle, session, options, seed=0, scratch=Path(scratch))
            batched = _batched(table, session)
        write_atomically(path, json.dumps({"table": table.to_json(), "batched": batched}).encode())
    kept = json.loads(path.read_text(encoding="utf-8"))
    return LatencyModel.from_json(bundle.manifest.space, kept["table"]), float(kept["batched"])


def _batched(table: LatencyModel, session: Session) -> float:
    """Median over subnets in which every alternative appears."""
    inputs = random_inputs(session.inputs, seed=0, batch=BATCH)
    subnets = covering_vectors(table.cost.space)
    taken = measure_candidates([Candidate(session, inputs, gates) for gates in subnets], runs=RUNS, seed=0)
    return statistics.median(m.p50_ms / BATCH / table.predict_ms(m.gates) for m in taken)
