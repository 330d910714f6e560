"""The latency table that training paths can be spread over: measured here, or brought from a device."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from builder.elastify import Supernet
from builder.export import BundleInfo, pack
from builder.files import write_atomically
from builder.project.settings import file_digest
from builder.training import Ranks
from edge_runtime.additive import AdditiveCost
from edge_runtime.backends import SessionOptions, open_session
from edge_runtime.errors import InputError, StateError, UsageError
from edge_runtime.gates import GateSpace
from edge_runtime.measure import LatencyModel, calibrate

__all__ = ["HERE", "keep_latency", "latency_name", "read_latency"]

HERE = "here"
"""In the place of a file: measure on this machine, with one thread of onnxruntime."""

TABLE = "latency.json"
"""The copy in the work folder."""


def latency_name(choice: str) -> str:
    """What the training's settings call `choice`: `HERE`, or the sha256 of the file; `UsageError` without the file."""
    return HERE if choice == HERE else file_digest(Path(choice), "latency table")


def keep_latency(choice: str, supernet: Supernet, info: BundleInfo, work: Path, seed: int) -> None:
    """Write `work`/latency.json: a copy of the file that `choice` names, or, for `HERE`, what is measured.

    An untrained supernet costs what the trained one will. Raises `InputError` where the file is of another supernet.
    """
    if choice == HERE:
        model = _measured(supernet, info, work, seed)
    else:
        path = Path(choice)
        model = _parsed(path, _content(path), supernet.space, "measure one: --latency here")
    write_atomically(work / TABLE, json.dumps(model.to_json(), indent=1).encode())


def read_latency(work: Path, space: GateSpace, ranks: Ranks) -> AdditiveCost:
    """The table that `keep_latency` wrote, in milliseconds; the first rank reads it for all."""
    path = work / TABLE
    content = ranks.share(_content(path) if ranks.first else None)
    return _parsed(path, content, space, f"put it back, or delete train.json in {work} and train again").cost


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(
            f"the latency table {str(path)!r} cannot be read: {error.strerror}", hint="check its path"
        ) from error


def _parsed(path: Path, content: bytes, space: GateSpace, hint: str) -> LatencyModel:
    try:
        return LatencyModel.from_json(space, json.loads(content))
    except (ValueError, RecursionError, UsageError) as error:
        raise InputError(f"{path} is no latency table of this supernet: {error}", hint=hint) from error


def _measured(supernet: Supernet, info: BundleInfo, work: Path, seed: int) -> LatencyModel:
    place = work / "latency"
    shutil.rmtree(place, ignore_errors=True)
    (place / "profile").mkdir(parents=True)
    prior = [[0.0] * group.size for group in supernet.space.groups]
    options = SessionOptions()
    bundle = pack(supernet, prior, info, place / "draft")
    session = open_session(bundle, options)
    try:
        return calibrate(bundle, session, options, seed=seed, scratch=place / "profile")
    finally:
        session.close()
        shutil.rmtree(place, ignore_errors=True)
