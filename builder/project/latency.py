"""The latency table that training paths can be spread over: measured here, or brought from a device."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from builder.elastify import Supernet
from builder.export import BundleInfo, pack
from builder.files import write_atomically
from edge_runtime.additive import AdditiveCost
from edge_runtime.backends import SessionOptions, open_session
from edge_runtime.errors import InputError, UsageError
from edge_runtime.gates import GateSpace
from edge_runtime.measure import LatencyModel, calibrate

__all__ = ["HERE", "keep_latency", "read_latency"]

HERE = "here"
"""In the place of a file: measure on this machine, with one thread of onnxruntime."""


def keep_latency(choice: str, supernet: Supernet, info: BundleInfo, work: Path, seed: int) -> None:
    """Write `work`/latency.json: a copy of the file that `choice` names, or, for `HERE`, what is measured.

    An untrained supernet costs what the trained one will. Raises `InputError` where the file is of another supernet.
    """
    model = _measured(supernet, info, work, seed) if choice == HERE else _read(Path(choice), supernet.space)
    write_atomically(work / "latency.json", json.dumps(model.to_json(), indent=1).encode())


def read_latency(work: Path, space: GateSpace) -> AdditiveCost:
    """The table that `keep_latency` wrote, in milliseconds."""
    return _read(work / "latency.json", space).cost


def _read(path: Path, space: GateSpace) -> LatencyModel:
    try:
        return LatencyModel.from_json(space, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, UsageError) as error:
        raise InputError(
            f"{path} is no latency table of this supernet: {error}", hint="measure one: --latency here"
        ) from error


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
