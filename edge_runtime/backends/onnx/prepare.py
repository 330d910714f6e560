"""The gated graph, optimised once on this machine: what the child process makes and proves before it may be used.

onnxruntime optimises the portable graph and dumps it; the dump's names are mended, decisions are made before a run,
activations stay blocked across `If` boundaries, the default subnet stands beside all this as a whole, weights lie where
they are read, and every alternative is compared with the portable graph on real runs. Where a form fails, the next
simpler one is tried. Loaded without optimisation the result leaves the weights of inactive branches on the disk.

Runs in a process of its own (`compile_bundle` starts it), because optimising takes several times the weights in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.backends.base import Array, SessionOptions, random_inputs, relative_difference
from edge_runtime.backends.onnx.check import check_graph
from edge_runtime.backends.onnx.heap import give_back_freed
from edge_runtime.backends.onnx.modules import ModuleInput, read_tensor, write_modules
from edge_runtime.backends.onnx.passes import (
    decide_outside,
    inline_gates,
    keep_blocked,
    lift_switched,
    make_names_unique,
    move_tensors_in,
    run_default_whole,
    value_shapes,
)
from edge_runtime.backends.onnx.prepared import PORTABLE, SKELETON, TENSORS, PreparedGraph
from edge_runtime.backends.onnx.quantised import tolerance_of
from edge_runtime.backends.onnx.session import WEIGHTS_FILE, create_dump, create_native, foreign_errors
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, EdgeError
from edge_runtime.gates import Gates, GateSpace, is_in_8_bits
from edge_runtime.seeds import covering_vectors, random_gates

__all__ = [
    "FORMS",
    "PORTABLE",
    "RECORD",
    "SKELETON",
    "TENSORS",
    "file_sha256",
    "main",
    "outputs_agree",
    "prepare",
    "session_bytes",
]

RECORD = "record.json"

FORMS = ("crossing", "dump", "extended")
"""Quickest first: blocked across branches, decisions made outside; as dumped at full optimisation; without blocked
layouts."""

TOLERANCE = 1e-4
"""Largest difference of outputs from the portable graph, relative to their largest magnitude; see `_tolerance`."""

RANDOM_VECTORS = 6
"""Gate vectors that are compared beside those that cover every alternative."""

GAIN_SECONDS = 0.15
"""Time for each subnet on which a specialised session is compared with the gated one."""

GAIN_RUNS = 40

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What all forms are made from and compared with."""

    bundle: Bundle
    options: SessionOptions
    folder: Path
    seed: int

    lifted: Bundle
    """The same, with the graph that is optimised: it is fed the weights of modules."""

    modules: tuple[ModuleInput, ...]
    """What it is fed."""

    def vectors(self) -> list[Gates]:
        """Every alternative at least once, every module alone in its layer, and some random subnets.

        Those in float32 among themselves too: beside one in 8 bits, whose outputs may differ more, nothing would be
        seen of them.
        """
        space, rng = self.bundle.manifest.space, random.Random(self.seed)
        covering = [*covering_vectors(space), *covering_vectors(space, but=is_in_8_bits)]
        drawn = (random_gates(space, rng) for _ in range(RANDOM_VECTORS))
        return list(dict.fromkeys([space.default, *covering, *_lone_modules(space), *drawn]))


def _lone_modules(space: GateSpace) -> Iterator[Gates]:
    """Subnets of one module a layer, until each was that one; none where there are no such layers."""
    bits = {index: group.size for index, group in enumerate(space.groups) if group.kind == "subset"}
    for turn in range(max(bits.values(), default=0)):
        gates = space.default
        for index, size in bits.items():
            gates = gates.replace(index, tuple(int((index + turn) % size == module) for module in range(size)))
        yield gates


def prepare(request: dict[str, Any]) -> dict[str, Any]:
    """Make the quickest form that is right; returns what is known of it.

    Args:
        request: ``source`` and ``digest`` of the bundle, ``folder`` for files, ``threads``, ``providers``, ``seed``.

    Raises:
        EdgeError: No form could be made; the message says why each failed.
    """
    bundle = Bundle.read(request["source"])
    if bundle.digest != request["digest"]:
        raise BackendError("the bundle was changed while it was being prepared", hint="load the model again")
    check_graph(bundle)
    options = SessionOptions(request["threads"], tuple(request["providers"]))
    folder = Path(request["folder"])
    attempt = _Attempt(bundle, options, folder, request["seed"], *_lift(bundle, folder))
    refused: dict[str, str] = {}
    for form in FORMS:
        try:
            error = _make(form, attempt)
        except EdgeError as reason:
            refused[form] = str(reason)
            continue
        gain = _specialised_gain(attempt)
        record = {"form": form, "error": error, "gain": gain, "refused": refused, "files": _files(folder)}
        return record | {"modules": [each.to_json() for each in attempt.modules]}
    raise BackendError("no prepared form of the graph is right: " + "; ".join(f"{k}: {v}" for k, v in refused.items()))


def _lift(bundle: Bundle, folder: Path) -> tuple[Bundle, tuple[ModuleInput, ...]]:
    """The bundle with the graph to be optimised, and what that is fed; what it is gathered from is in `folder` then."""
    import onnx

    if all(group.kind != "subset" for group in bundle.manifest.space.groups):
        return bundle, ()
    model = onnx.load_from_string(bundle.model_bytes)
    lifted = lift_switched(model)
    if not lifted:
        return bundle, ()
    (folder / PORTABLE).write_bytes(bundle.model_bytes)
    modules = write_modules(folder / WEIGHTS_FILE, lifted, bundle.weights)
    return replace(bundle, model_bytes=model.SerializeToString()), modules


def _make(form: str, attempt: _Attempt) -> float:
    """Write one form; its largest relative difference from the portable graph."""
    reference = _dump(form, attempt)
    prepared = PreparedGraph(attempt.folder, attempt.bundle.manifest, attempt.options, attempt.modules)
    worst = 0.0
    for difference, allowed in _differences(reference, prepared, attempt):
        if not difference <= allowed:
            raise BackendError(f"its outputs differ from the portable graph's by {difference:.1e}")
        worst = max(worst, difference)
    return worst


def _dump(form: str, attempt: _Attempt) -> Any:
    """Optimise, dump, rewrite; gives a session that runs the portable graph as it always ran."""
    import onnx

    skeleton, bundle = attempt.folder / SKELETON, attempt.lifted
    reference = create_dump(bundle, attempt.options, skeleton, TENSORS, blocked=form != "extended")
    if attempt.modules:  # what was dumped is another graph
        reference = create_native(attempt.bundle.model_bytes, bundle.weights, attempt.options)
    with foreign_errors("the optimised graph cannot be read back"):
        model = onnx.load(str(skeleton), load_external_data=False)
        make_names_unique(model)
        if form == "crossing":
            decisions = decide_outside(model, bundle.manifest.gate_input, bundle.manifest.space.default.vector())
            keep_blocked(model, value_shapes(onnx.load_from_string(bundle.model_bytes)))
            if decisions is not None:
                run_default_whole(model, decisions)
            move_tensors_in(model.graph)
        skeleton.write_bytes(model.SerializeToString())
    return reference


def _differences(reference: Any, prepared: PreparedGraph, attempt: _Attempt) -> Iterator[tuple[float, float]]:
    """Relative differences of all outputs and what they may be, over subnets and over one image and two."""
    manifest = attempt.bundle.manifest
    names = [spec.name for spec in manifest.outputs]
    portable = _if_coded(attempt.bundle)
    for number, gates in enumerate(attempt.vectors()):
        inputs = random_inputs(manifest.inputs, seed=attempt.seed + number, batch=1 + number % 2)
        feeds = {**inputs, manifest.gate_input: np.array(gates.vector(), np.int64)}
        with foreign_errors(f"the prepared graph cannot run subnet {gates}"):
            wanted, found = reference.run(names, feeds), prepared.gated.run(names, prepared.feeds(inputs, gates))
        allowed = (
            TOLERANCE if portable is None else _tolerance(portable, manifest.gate_input, attempt.bundle.weights, gates)
        )
        yield from ((relative_difference(one, other), allowed) for one, other in zip(wanted, found, strict=True))


def _if_coded(bundle: Bundle) -> Any:
    """The portable ModelProto, where something of it computes in 8 bits."""
    import onnx

    return onnx.load_from_string(bundle.model_bytes) if b"QLinearConv" in bundle.model_bytes else None


def _tolerance(portable: Any, gate_input: str, weights: bytes, gates: Gates) -> float:
    """Of the outputs of one subnet."""
    settled = {gate_input: np.array(gates.vector(), np.int64)}
    subnet = inline_gates(portable, settled, read=partial(read_tensor, weights=weights))
    return tolerance_of(subnet.graph, TOLERANCE)


def _specialised_gain(attempt: _Attempt) -> float:
    """Latency of the gated session over that of one subnet alone, the median over a few; 0 where none can be made."""
    manifest, rng = attempt.bundle.manifest, random.Random(attempt.seed)
    prepared = PreparedGraph(attempt.folder, manifest, attempt.options, attempt.modules)
    inputs = random_inputs(manifest.inputs, seed=attempt.seed)
    ratios: list[float] = []
    drawn = (random_gates(manifest.space, rng) for _ in range(2))
    for gates in dict.fromkeys([manifest.space.default, _in_8_bits(manifest.space), *drawn]):
        try:
            with foreign_errors(f"subnet {gates} cannot run alone"):
                special, feeds = prepared.alone(gates), prepared.feeds(inputs, gates)
                if not outputs_agree(prepared.gated.run(None, feeds), special.run(None, inputs)):
                    return 0.0
                ratios.append(_ratio(partial(prepared.gated.run, None, feeds), partial(special.run, None, inputs)))
        except EdgeError:
            return 0.0
    return statistics.median(ratios)


def _in_8_bits(space: GateSpace) -> Gates:
    """As many units in 8 bits as there are: beside each other they are most unlike what the gated session runs."""
    labels = [group.labels if group.kind == "choice" else () for group in space.groups]
    coded = [next((value for value, label in enumerate(row) if is_in_8_bits(label)), None) for row in labels]
    return space.gates([group.default if own is None else own for group, own in zip(space.groups, coded, strict=True)])


def session_bytes(
    request: dict[str, Any], modules: Sequence[ModuleInput], anonymous_bytes: Callable[[], object]
) -> int | None:
    """Memory of its own that a session of the full subnet takes after a run of one image, bytes; None where unknown.

    What this process freed before is given back first, so that it is not taken again unseen. The larger of two: the
    first also grows what all sessions share, the second may find a rest of that.
    """
    options = SessionOptions(request["threads"], tuple(request["providers"]))
    manifest = Bundle.read(request["source"]).manifest
    graph = PreparedGraph(Path(request["folder"]), manifest, options, modules)
    graph.subnet(manifest.space.default)  # reads what all sessions are made of
    give_back_freed()
    kept, sizes = [], [anonymous_bytes()]
    for _ in range(2):
        kept.append(graph.alone(manifest.space.default))
        kept[-1].run(None, random_inputs(manifest.inputs, seed=0))
        sizes.append(anonymous_bytes())
    known = [size for size in sizes if isinstance(size, int)]
    return max(known[1] - known[0], known[2] - known[1], 0) if len(known) == len(sizes) else None


def _ratio(first: Callable[[], object], second: Callable[[], object]) -> float:
    """Median time of `first` over that of `second`, in turns."""
    times: tuple[list[int], list[int]] = ([], [])
    stop_ns = time.perf_counter_ns() + int(GAIN_SECONDS * 1e9)
    while len(times[0]) < GAIN_RUNS and (len(times[0]) < 3 or time.perf_counter_ns() < stop_ns):
        for run, taken in zip((first, second), times, strict=True):
            run()  # warms the caches after the other one
            began_ns = time.perf_counter_ns()
            run()
            taken.append(time.perf_counter_ns() - began_ns)
    return statistics.median(times[0]) / statistics.median(times[1])


def outputs_agree(wanted: list[Array], found: list[Array]) -> bool:
    """Whether all outputs of two forms of one subnet are within `TOLERANCE`."""
    return all(relative_difference(one, other) <= TOLERANCE for one, other in zip(wanted, found, strict=True))


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    made = {name: folder / name for name in (SKELETON, TENSORS, PORTABLE, WEIGHTS_FILE) if (folder / name).exists()}
    return {name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for name, path in made.items()}


def file_sha256(path: Path) -> str:
    """The digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _known_session_bytes(
    request: dict[str, Any], record: dict[str, Any], anonymous_bytes: Callable[[], object]
) -> int | None:
    """What `session_bytes` finds; None where it fails, for the form is right without it."""
    modules = [ModuleInput.from_json(entry) for entry in record["modules"]]
    try:
        with foreign_errors("a session cannot be measured"):
            return session_bytes(request, modules, anonymous_bytes)
    except EdgeError:
        return None


def main(request: dict[str, Any], answer: Callable[[str], object], anonymous_bytes: Callable[[], object]) -> None:
    """The child process: prepare, write the record last, answer one line of JSON.

    `anonymous_bytes` gives the memory that is this process's own, bytes, or something that is no integer.
    """
    with contextlib.suppress(OSError):  # where memory runs out, the kernel shall take this process and not its parent
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        record = prepare(request)
        if record["gain"] > 0:
            record["session_bytes"] = _known_session_bytes(request, record, anonymous_bytes)
        (Path(request["folder"]) / RECORD).write_text(json.dumps(record | {"key": request["key"]}), encoding="utf-8")
        answer(json.dumps({"form": record["form"]}))
    except EdgeError as error:
        answer(json.dumps({"error": error.message}))
    except MemoryError:
        answer(json.dumps({"error": "too little memory to optimise the graph"}))
    except OSError as error:
        answer(json.dumps({"error": f"{error.strerror or error}"}))
