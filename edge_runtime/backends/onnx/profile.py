"""Where the time of a subnet goes: leaf kernels of profiled sessions, by decision point, in the form that will serve.

Where subnets run in sessions of their own, each vector is profiled in one: there is no `If`, and the prepared graph
says to which decision a node belongs. Elsewhere one gated session is profiled. onnxruntime charges an `If` with the
cost of profiling everything inside it, so inclusive times mislead (45 % error on small networks); the leaf kernels
inside it do not (2 %).

The exporter names the outermost `If` of decision i ``group_<i>``, and that of a merged window starting at i
``window_<i>``. Kernels inside ``group_<i>`` belong to group i, the rest of a window to the group that it starts at, all
others to the base.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edge_runtime.backends.base import Array, KernelProfile, Kernels, Session, SessionOptions, check_gates
from edge_runtime.backends.onnx.check import check_graph
from edge_runtime.backends.onnx.compiled import CompiledSession
from edge_runtime.backends.onnx.passes.neighbours import BACK
from edge_runtime.backends.onnx.session import create_native, foreign_errors
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, StateError
from edge_runtime.gates import Gates

__all__ = ["profile_kernels"]

_POINT = re.compile(r"(?:group|window)_(\d{1,4})_kernel_time")
_KERNEL = "_kernel_time"

LEAST_ROUNDS = 3
"""Visits that are made however slow the model is."""

RECORDED = 2
"""Runs that count in each visit of a vector; the one before them brings its weights back into the caches."""

_Event: TypeAlias = dict[str, Any]
_Owner: TypeAlias = Callable[[_Event], int]
"""From a kernel to the group that it belongs to; -1 for the base."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """One vector as it is profiled."""

    native: Any
    feeds: Mapping[str, Array]
    owners: Mapping[str, int] | None
    """By node name; None: by the intervals of the decision points in each run."""


def profile_kernels(
    bundle: Bundle,
    options: SessionOptions,
    inputs: Mapping[str, Array],
    vectors: Sequence[Gates],
    *,
    rounds: int,
    scratch: Path,
    session: Session | None = None,
    seconds: float = math.inf,
) -> KernelProfile:
    """Run every vector in `rounds` visits, interleaved; see `edge_runtime.backends.profile_kernels`."""
    for gates in vectors:
        check_gates(bundle.manifest.space, gates)
    try:
        with tempfile.TemporaryDirectory(prefix="profile-", dir=scratch) as made:
            prefix = Path(made) / "kernels"
            choices = all(group.kind == "choice" for group in bundle.manifest.space.groups)
            if isinstance(session, CompiledSession) and session.specialises and choices:
                subjects = _alone(session, inputs, vectors, prefix)
            else:
                subjects = _gated(bundle, options, inputs, vectors, prefix, session)
            runs = _run(subjects, rounds, seconds)
    except OSError as error:
        raise StateError(f"the kernel profile could not be kept in {scratch}: {error}") from error
    return _profile(vectors, subjects, runs)


def _alone(
    session: CompiledSession, inputs: Mapping[str, Array], vectors: Sequence[Gates], prefix: Path
) -> list[_Subject]:
    owners = session.decisions()
    with foreign_errors("a subnet cannot be profiled alone"):
        natives = [
            session.alone(gates, profile_prefix=prefix.with_suffix(f".{number}"))
            for number, gates in enumerate(vectors)
        ]
    return [_Subject(native, inputs, owners) for native in natives]


def _gated(
    bundle: Bundle,
    options: SessionOptions,
    inputs: Mapping[str, Array],
    vectors: Sequence[Gates],
    prefix: Path,
    session: Session | None,
) -> list[_Subject]:
    if isinstance(session, CompiledSession):
        native = session.gated(profile_prefix=prefix)
        return [_Subject(native, session.feeds(inputs, gates, whole=False), None) for gates in vectors]
    check_graph(bundle)
    native = create_native(bundle.model_bytes, bundle.weights, options, profile_prefix=prefix)
    name = bundle.manifest.gate_input
    return [_Subject(native, {**inputs, name: np.array(gates.vector(), dtype=np.int64)}, None) for gates in vectors]


def _run(subjects: Sequence[_Subject], rounds: int, seconds: float) -> list[list[list[_Event]]]:
    """Per vector the kernel events of each run that counts."""
    natives = list({id(subject.native): subject.native for subject in subjects}.values())
    visited: dict[int, list[int]] = {id(native): [] for native in natives}
    began = time.perf_counter()
    try:
        # The first round touches the weights of every branch; it is dropped.
        for number in range(rounds + 1):
            if number > LEAST_ROUNDS and time.perf_counter() - began > seconds:
                break
            for index, subject in enumerate(subjects):
                for run in range(1 + RECORDED):
                    with foreign_errors("a profiled subnet could not be run"):
                        subject.native.run(None, dict(subject.feeds))
                    visited[id(subject.native)].append(index if number and run else -1)
    finally:
        with foreign_errors("the profile could not be ended"):
            paths = [native.end_profiling() for native in natives]
    counted: list[list[list[_Event]]] = [[] for _ in subjects]
    for native, path in zip(natives, paths, strict=True):
        runs, order = _read(path), visited[id(native)]
        if len(runs) != len(order):
            raise BackendError(
                f"onnxruntime's profile holds {len(runs)} runs, not {len(order)}",
                hint="report this with the version of onnxruntime; calibration by timing needs no profile",
            )
        for events, index in zip(runs, order, strict=True):
            if index >= 0:
                counted[index].append(events)
    return counted


def _read(path: str) -> list[list[_Event]]:
    """The kernel events of each run in one profile, in the order of the runs."""
    try:
        events: list[_Event] = json.loads(Path(path).read_bytes())
    except ValueError as error:  # onnxruntime does not say when the disk was full
        raise StateError(f"the kernel profile {path!r} is cut short: {error}", hint="free some space") from error
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    starts = [start for start, _ in spans]
    runs: list[list[_Event]] = [[] for _ in spans]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            run = bisect_right(starts, event["ts"]) - 1
            if run >= 0 and event["ts"] + event["dur"] <= spans[run][1]:
                runs[run].append(event)
    return runs


def _profile(
    vectors: Sequence[Gates], subjects: Sequence[_Subject], runs: Sequence[list[list[_Event]]]
) -> KernelProfile:
    groups = len(vectors[0].values)
    rows = [_row(subject, events, groups) for subject, events in zip(subjects, runs, strict=True)]
    base, alone = tuple(row[-1] for row in rows), subjects[0].owners is not None
    return KernelProfile(tuple(vectors), base, tuple(tuple(row[:-1]) for row in rows), alone)


def _row(subject: _Subject, runs: list[list[_Event]], groups: int) -> list[Kernels]:
    """What each group took in the runs of one vector, each kernel in its quickest; the base as the last entry."""
    quickest: dict[str, int] = {}
    for event in (event for events in runs for event in events):
        quickest[event["name"]] = min(int(event["dur"]), quickest.get(event["name"], int(event["dur"])))
    owner = _by_name(subject.owners) if subject.owners is not None else _by_interval(runs[0])
    found: list[list[_Event]] = [[] for _ in range(groups + 1)]
    for event in runs[0]:
        if event["args"].get("op_name") != "If":
            found[owner(event)].append(event)
    return [_kernels(sum(quickest[event["name"]] for event in own), own) for own in found]


def _kernels(us: float, events: Sequence[_Event]) -> Kernels:
    weights = sum(_bytes(event, "parameter_size") for event in events)
    return Kernels(us, len(events), weights, max(map(_live_bytes, events), default=0))


def _live_bytes(event: _Event) -> int:
    """What is allocated when a kernel has run; of an onnxruntime that does not say, what the kernel itself needs."""
    return _bytes(event, "mem_bytes_in_use") or _bytes(event, "activation_size") + _bytes(event, "output_size")


def _bytes(event: _Event, key: str) -> int:
    return int(event["args"].get(key, 0))


def _by_name(owners: Mapping[str, int]) -> _Owner:
    return lambda event: owners.get(event["name"].removesuffix(_KERNEL).removesuffix(BACK), -1)


def _by_interval(events: Sequence[_Event]) -> _Owner:
    """By the intervals of the decision points in one run of a gated graph; inner decisions go before their window."""
    units, windows = _points(events, "group_"), _points(events, "window_")

    def owner(event: _Event) -> int:
        group = _inside(units, event)
        return group if group >= 0 else _inside(windows, event)

    return owner


def _points(events: Sequence[_Event], prefix: str) -> list[tuple[int, int, int]]:
    """Start, stop and group of each decision point of a kind, by start."""
    found = []
    for event in events:
        match = _POINT.fullmatch(event["name"])
        if match and event["name"].startswith(prefix):
            found.append((event["ts"], event["ts"] + event["dur"], int(match[1])))
    return sorted(found)


def _inside(points: Sequence[tuple[int, int, int]], event: _Event) -> int:
    index = bisect_right(points, event["ts"], key=lambda point: point[0]) - 1
    return points[index][2] if index >= 0 and event["ts"] + event["dur"] <= points[index][1] else -1
