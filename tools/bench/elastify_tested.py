"""Which images a session is right about, and how quick a plain graph is beside the oracle."""

# ruff: noqa: TID251 - a bench may use the builder; only the runtime must not

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from elastify_arms import latency_ratio
from elastify_data import TinyImages
from elastify_oracle import GRAPH
from elastify_pace import alone

from builder.data import ImageSet
from edge_runtime.backends import Session, SessionOptions, open_static
from edge_runtime.gates import Gates
from edge_runtime.quality import Values

__all__ = ["ALL_THREADS", "BATCH", "ONE_THREAD", "network_point", "oracle_right", "rights_of"]

BATCH = 50

ONE_THREAD = SessionOptions(threads=1)
ALL_THREADS = SessionOptions(threads=len(os.sched_getaffinity(0)))


def oracle_right(images: TinyImages, work: Path) -> Values:
    """For each test image 1.0 where the oracle names the right class, else 0.0."""
    return rights_of(open_static((work / GRAPH).read_bytes(), ALL_THREADS), None, images.test)


def network_point(
    content: bytes, name: str, oracle: Session, images: TinyImages, runs: int
) -> tuple[dict[str, Any], Values]:
    """Latency and accuracy of a plain graph, and whether it is right on each test image."""
    with alone(f"tools/bench/elastify.py: {name}"):
        ratio = latency_ratio(open_static(content, ONE_THREAD), oracle, runs)
    right = rights_of(open_static(content, ALL_THREADS), None, images.test)
    return {"reachable": True, "ratio": ratio, "accuracy": float(right.mean())}, right


def rights_of(session: Session, gates: Gates | None, split: ImageSet) -> Values:
    """For each image of a split 1.0 where a session names the right class, else 0.0."""
    name, found = session.inputs[0].name, []
    for start in range(0, len(split), BATCH):
        batch = split.inputs(slice(start, start + BATCH)).contiguous().numpy()
        found.append(next(iter(session.run({name: batch}, gates).values())).argmax(1))
    return np.asarray(np.concatenate(found) == split.labels, np.float64)
