"""Where the time of a gated graph goes: leaf kernels of one profiled session, by decision point.

onnxruntime's profiler charges an `If` with the cost of profiling everything inside it, so inclusive times mislead (45 %
error on small networks); the sum of the leaf kernels inside it does not (2 %). The exporter names the outermost `If` of
decision i ``group_<i>``, and that of a merged window starting at i ``window_<i>``.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.backends.base import Array, KernelProfile, Session, SessionOptions, check_gates
from edge_runtime.backends.onnx.check import check_graph
from edge_runtime.backends.onnx.compiled import CompiledSession
from edge_runtime.backends.onnx.prepare import SKELETON
from edge_runtime.backends.onnx.session import PortableSession, create_native, create_prepared, foreign_errors
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, StateError
from edge_runtime.gates import Gates

__all__ = ["profile_kernels"]

_POINT = re.compile(r"(?:group|window)_(\d{1,4})_kernel_time")
_KERNEL = "_kernel_time"


@dataclass(frozen=True, slots=True)
class _Point:
    """One decision point in one run, as an interval of the profiler's clock."""

    start_us: int
    stop_us: int
    group: int


def profile_kernels(
    bundle: Bundle,
    options: SessionOptions,
    inputs: Mapping[str, Array],
    vectors: Sequence[Gates],
    *,
    rounds: int,
    scratch: Path,
    session: Session | None = None,
) -> KernelProfile:
    """Run every vector `rounds` times in one profiled session; see `edge_runtime.backends.profile_kernels`.

    Kernels inside ``group_<i>`` belong to group i, the rest of a window to the group that it starts at, all others to
    the base. Per vector the median over rounds is kept.
    """
    for gates in vectors:
        check_gates(bundle.manifest.space, gates)
    folder = session.folder if isinstance(session, CompiledSession) else None
    if folder is None:
        check_graph(bundle)
    try:
        with tempfile.TemporaryDirectory(prefix="profile-", dir=scratch) as made:
            prefix = Path(made) / "kernels"
            if folder is None:
                native = create_native(bundle.model_bytes, bundle.weights, options, profile_prefix=prefix)
            else:
                native = create_prepared(folder / SKELETON, options, profile_prefix=prefix)
            events = _run_profiled(native, PortableSession(native, bundle, options), inputs, vectors, rounds)
    except OSError as error:
        raise StateError(f"the kernel profile could not be kept in {scratch}: {error}") from error
    groups = len(bundle.manifest.space.groups)
    runs = [_attribute(run, groups) for run in _split_runs(events)[len(vectors) :]]
    if len(runs) != rounds * len(vectors):
        raise BackendError(
            f"onnxruntime's profile holds {len(runs)} runs, not {rounds * len(vectors)}",
            hint="report this with the version of onnxruntime; calibration by timing needs no profile",
        )
    return _medians(vectors, runs)


def _medians(vectors: Sequence[Gates], runs: Sequence[Sequence[int]]) -> KernelProfile:
    """Per vector the median over its rounds; `runs` goes round the vectors, the base is the last entry of each."""
    base, per_group = [], []
    for index in range(len(vectors)):
        columns = [statistics.median(column) for column in zip(*runs[index :: len(vectors)], strict=True)]
        base.append(columns[-1])
        per_group.append(tuple(columns[:-1]))
    return KernelProfile(tuple(vectors), tuple(base), tuple(per_group))


def _run_profiled(
    native: Any, session: Session, inputs: Mapping[str, Array], vectors: Sequence[Gates], rounds: int
) -> list[dict[str, Any]]:
    try:
        # The first round touches the weights of every branch; it is dropped.
        for _ in range(rounds + 1):
            for gates in vectors:
                session.run(inputs, gates)
    finally:
        session.close()
        with foreign_errors("the profile could not be ended"):
            path = native.end_profiling()
    try:
        events: list[dict[str, Any]] = json.loads(Path(path).read_bytes())
    except ValueError as error:  # onnxruntime does not say when the disk was full
        raise StateError(f"the kernel profile {path!r} is cut short: {error}", hint="free some space") from error
    return events


def _split_runs(events: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The node events of each run, in the order of the runs."""
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    starts = [start for start, _ in spans]
    runs: list[list[dict[str, Any]]] = [[] for _ in spans]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            run = bisect_right(starts, event["ts"]) - 1
            if run >= 0 and event["ts"] + event["dur"] <= spans[run][1]:
                runs[run].append(event)
    return runs


def _attribute(events: Sequence[dict[str, Any]], groups: int) -> list[int]:
    """Microseconds of leaf kernels per group, and of those outside every decision point as the last entry."""
    units, windows = _points(events, "group_"), _points(events, "window_")
    total = [0] * (groups + 1)
    for event in events:
        if event["args"].get("op_name") == "If":
            continue
        point = _inside(units, event) or _inside(windows, event)
        total[point.group if point and point.group < groups else groups] += int(event["dur"])
    return total


def _points(events: Sequence[dict[str, Any]], prefix: str) -> list[_Point]:
    points = []
    for event in events:
        match = _POINT.fullmatch(event["name"])
        if match and event["name"].startswith(prefix):
            points.append(_Point(event["ts"], event["ts"] + event["dur"], int(match[1])))
    return sorted(points, key=lambda point: point.start_us)


def _inside(points: Sequence[_Point], event: dict[str, Any]) -> _Point | None:
    index = bisect_right(points, event["ts"], key=lambda point: point.start_us) - 1
    if index >= 0 and event["ts"] + event["dur"] <= points[index].stop_us:
        return points[index]
    return None
