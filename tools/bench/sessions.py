"""What elasticity costs: a subnet exported alone beside the same subnet in each running form, interleaved in one run.

Forms: `static` (the subnet as `nnf-edge export` writes it, at full optimisation), `tier1` (the prepared gated graph),
`tier2` (a session of the subnet alone, made from the prepared graph), `naive` (the portable gated graph as onnxruntime
loads it). All ratios are of medians over the static form. Memory is what a process of its own adds over the interpreter
with onnxruntime, anonymous pages only. The last line of output is one JSON object.

    python tools/bench/sessions.py [--quick] [--models demo,runway,mobilenetv2,resnet50] [--threads N]

The supernets of MobileNetV2 and ResNet-50 size have random weights (tools/supernets.py). Needs neither torch nor data.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np

from edge_runtime import sense
from edge_runtime.backends import SessionOptions, compile_bundle, export_subnet, open_session, open_static
from edge_runtime.backends.base import Array, Session, random_inputs
from edge_runtime.backends.onnx.compiled import CompiledSession
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError
from edge_runtime.gates import Gates, GateSpace
from edge_runtime.measure import Candidate, MemoryModel, calibrate, measure_candidates
from edge_runtime.measure.calibrate import check_subnets, profiled
from edge_runtime.search import random_gates

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {"demo": ROOT / "edge_runtime/assets/demo.nnf", "runway": ROOT / "tests/data/runway.nnf"}
GENERATED = ("mobilenetv2", "resnet50")
FORMS = ("static", "tier1", "tier2", "naive")
MEMORY_FORMS = ("static", "naive", "tier1", "tier1_and_2")
HELD_OUT = 30
MEMORY_RUNS = 25
RATE_HZ = 30
BURST = 4
LEAST_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Case:
    """One bundle, prepared."""

    name: str
    bundle: Bundle
    folder: Path
    options: SessionOptions
    quick: bool

    @property
    def space(self) -> GateSpace:
        """Its gates."""
        return self.bundle.manifest.space

    def compiled(self, *, specialises: bool) -> CompiledSession:
        """A session of the prepared folder, with tier 2 or without."""
        return CompiledSession(self.folder, self.bundle.manifest, self.options, form="tier", specialises=specialises)

    def subnets(self) -> dict[str, Gates]:
        """Full, some mixed ones, and everything at its narrowest."""
        rng = random.Random(0)
        mixed = {f"mixed{number}": random_gates(self.space, rng) for number in range(2 if self.quick else 4)}
        narrow = self.space.gates([_narrowest(group.labels) for group in self.space.groups])
        return {"full": self.space.default, **mixed, "narrow": narrow}


def _narrowest(labels: Sequence[str]) -> int:
    widths = {int(label[6:]): value for value, label in enumerate(labels) if label.startswith("narrow")}
    return widths[min(widths)] if widths else 0


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    options = SessionOptions(threads=arguments.threads)
    models: dict[str, Any] = {}
    loop: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        for name in arguments.models.split(","):
            case = _case(name, Path(made), options, arguments.quick)
            print(f"{name}: {case.space.size():,} subnets", file=sys.stderr)
            models[name] = _model(case)
            print(json.dumps(models[name]), file=sys.stderr)
            if name == "mobilenetv2":
                loop = _swap_loop(case)
    return {"threads": arguments.threads, "models": models, "swap_loop": loop}


def _case(name: str, folder: Path, options: SessionOptions, quick: bool) -> Case:
    path = SHIPPED.get(name) or folder / f"{name}.nnf"
    if name in GENERATED:
        subprocess.run([sys.executable, str(ROOT / "tools/supernets.py"), name, str(path)], check=True, cwd=ROOT)
    bundle = Bundle.read(path)
    prepared = folder / f"prepared-{name}"
    prepared.mkdir()
    compile_bundle(bundle, options, prepared, key="bench")
    return Case(name, bundle, prepared, options, quick)


def _model(case: Case) -> dict[str, Any]:
    ratios = _ratios(case)
    tier2 = [ratio["tier2"] for ratio in ratios.values()]
    mixed = [name for name in ratios if name.startswith("mixed")]

    def row(form: str) -> dict[str, float]:
        middle = statistics.geometric_mean(ratios[name][form] for name in mixed)
        return {"full": ratios["full"][form], "mixed": middle, "narrow": ratios["narrow"][form]}

    return {
        "tier2_over_static": {"geomean": statistics.geometric_mean(tier2), "max": max(tier2)},
        "tier1_over_static": row("tier1"),
        "naive_over_static": row("naive"),
        "ratios": ratios,
        **_swap(case),
        "private_mib": {form: _private_mib(case, form) for form in MEMORY_FORMS},
        "latency_model": _latency_model(case),
        "memory_model_error": _memory_model_error(case),
    }


def _ratios(case: Case) -> dict[str, dict[str, float]]:
    """Per subnet the median of each form over that of the static one, and the static median in milliseconds."""
    inputs = random_inputs(case.bundle.manifest.inputs, seed=0)
    tier1, tier2 = case.compiled(specialises=False), case.compiled(specialises=True)
    naive = open_session(case.bundle, case.options)
    found = {}
    for name, gates in case.subnets().items():
        static = open_static(export_subnet(case.bundle, gates), case.options)
        sessions: list[Session] = [static, tier1, tier2, naive]
        candidates = [Candidate(session, inputs, gates) for session in sessions]
        seconds = 4.0 if case.quick else 15.0
        with tier2.hold([gates]):
            medians = [m.p50_ms for m in measure_candidates(candidates, runs=400, seconds=seconds, seed=0)]
        found[name] = {form: value / medians[0] for form, value in zip(FORMS, medians, strict=True)}
        found[name]["static_ms"] = medians[0]
        static.close()
    for session in (tier1, tier2, naive):
        session.close()
    return found


def _swap(case: Case) -> dict[str, float]:
    """Microseconds that the first run after a swap takes longer at tier 1; milliseconds to make a tier-2 session."""
    session = case.compiled(specialises=True)
    gated = case.compiled(specialises=False)
    inputs = random_inputs(session.inputs, seed=0)
    one, other = case.space.default, case.subnets()["mixed0"]
    after_other, after_itself, made_ms = [], [], []
    for _ in range(20 if case.quick else 60):
        for before, times in ((other, after_other), (one, after_itself)):
            gated.run(inputs, one)
            gated.run(inputs, before)
            began_ns = time.perf_counter_ns()
            gated.run(inputs, one)
            times.append(time.perf_counter_ns() - began_ns)
    rng = random.Random(1)
    for _ in range(5 if case.quick else 15):
        gates = random_gates(case.space, rng)
        began_ns = time.perf_counter_ns()
        with session.hold([gates]):
            made_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
    session.close()
    gated.close()
    added_us = (statistics.median(after_other) - statistics.median(after_itself)) / 1e3
    return {"swap_us": added_us, "specialise_ms": statistics.median(made_ms)}


def _latency_model(case: Case) -> dict[str, float]:
    """Calibrated as the runtime does it; then held-out subnets, measured in the form that would serve them."""
    session = case.compiled(specialises=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        table = calibrate(case.bundle, session, case.options, seed=0, scratch=Path(scratch), seconds=2.0)
    seconds = time.perf_counter() - began
    rng, inputs = random.Random(2), random_inputs(session.inputs, seed=0)
    subnets = list(dict.fromkeys(random_gates(case.space, rng) for _ in range(HELD_OUT)))
    full, anchors = case.space.default, check_subnets(table.cost, seed=3)
    subnets = [gates for gates in subnets if gates not in anchors]
    with session.hold([*anchors, *subnets]):
        full_ms, ratios = _paired(session, inputs, full, [*anchors, *subnets], seconds=10.0 if case.quick else 30.0)
    session.close()
    # The machine is not as it was when the table was made; how much that is, subnets say that are not held out.
    measured = {gates: full_ms * ratio for gates, ratio in zip([*anchors, *subnets], ratios, strict=True)}
    drift = statistics.median(measured[gates] / table.predict_ms(gates) for gates in anchors)
    pairs = [(drift * table.predict_ms(gates), measured[gates]) for gates in subnets]
    errors = [abs(predicted / real - 1) for predicted, real in pairs]
    return {
        "mape": statistics.fmean(errors),
        "within_10pct": sum(error <= 0.1 for error in errors) / len(errors),
        "spearman": _spearman(pairs),
        "seconds": seconds,
        "drift": drift,
    }


def _paired(
    session: Session, inputs: Mapping[str, Array], reference: Gates, subnets: Sequence[Gates], *, seconds: float
) -> tuple[float, list[float]]:
    """Median of the reference in milliseconds; per subnet the median ratio to the reference just before and after.

    A shared machine changes its speed within seconds; a ratio to a neighbour in time does not.
    """

    def visit(gates: Gates) -> float:
        times = []
        for _ in range(1 + BURST):  # the first brings the weights back into the caches
            began_ns = time.perf_counter_ns()
            session.run(inputs, gates)
            times.append((time.perf_counter_ns() - began_ns) / 1e6)
        return statistics.median(times[1:])

    found: list[list[float]] = [[] for _ in subnets]
    references = []
    stop_s = time.perf_counter() + seconds
    while len(found[0]) < LEAST_ROUNDS or time.perf_counter() < stop_s:
        before = visit(reference)
        for gates, ratios in zip(subnets, found, strict=True):
            own, after = visit(gates), visit(reference)
            ratios.append(2 * own / (before + after))
            references.append(after)
            before = after
    return statistics.median(references), [statistics.median(ratios) for ratios in found]


def _spearman(pairs: Sequence[tuple[float, float]]) -> float:
    ranks = np.array(pairs).argsort(axis=0).argsort(axis=0)
    return float(np.corrcoef(ranks[:, 0], ranks[:, 1])[0, 1])


def _private_mib(case: Case, form: str) -> float:
    """Anonymous memory that a form adds in a process of its own, after runs of two subnets."""
    return _in_process(case, form, random_gates(case.space, random.Random(0)), others=True)["private_mib"]


def _memory_model_error(case: Case) -> float:
    """The largest relative error of the predicted memory of a process that serves one subnet."""
    session = case.compiled(specialises=True)
    with tempfile.TemporaryDirectory() as scratch:
        profile = profiled(case.bundle, session, case.options, seed=0, scratch=Path(scratch), seconds=0.0)
    session.close()
    if profile is None:
        raise BackendError("this onnxruntime gives no profile")
    model = MemoryModel.of(case.space, profile, maps_weights=True)
    errors = []
    for gates in case.subnets().values():
        seen = _in_process(case, "tier1_and_2", gates, others=False)
        errors.append(abs((seen["before_bytes"] + model.subnet_bytes(gates)) / seen["after_bytes"] - 1))
    return max(errors)


def _in_process(case: Case, form: str, gates: Gates, *, others: bool) -> dict[str, float]:
    words = [form, case.bundle.source, str(case.folder), str(case.options.threads), str(gates), str(int(others))]
    done = subprocess.run(
        [sys.executable, __file__, "--memory", *words], capture_output=True, text=True, check=True, cwd=ROOT
    )
    seen: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seen


def _memory_child(form: str, source: str, folder: str, threads: str, text: str, others: str) -> None:
    """Run one subnet, with `others` the full one now and then, and print what it took."""
    from edge_runtime.backends import runtime_versions

    options = SessionOptions(threads=int(threads))
    bundle = Bundle.read(source)
    default, gates = bundle.manifest.space.default, bundle.manifest.space.parse(text)
    static = export_static(source, gates) if form == "static" else b""
    runtime_versions()  # imports onnxruntime
    import onnx  # noqa: F401 - part of the runtime, as onnxruntime is

    light = bundle.without_contents()
    if form != "naive":
        del bundle
    before_mib = _anonymous_mib()
    session: Any
    if form == "static":
        session = open_static(static, options)
    elif form == "naive":
        session = open_session(bundle, options)
    else:
        session = CompiledSession(Path(folder), light.manifest, options, form="t", specialises=form == "tier1_and_2")
    inputs, before_bytes = random_inputs(session.inputs, seed=0), sense.process_share_bytes()
    with session.hold([gates]):
        for number in range(MEMORY_RUNS):
            session.run(inputs, default if int(others) and number % 5 == 0 else gates)
        private_mib, after_bytes = _anonymous_mib() - before_mib, sense.process_share_bytes()
    print(json.dumps({"private_mib": private_mib, "before_bytes": before_bytes, "after_bytes": after_bytes}))


def export_static(source: str, gates: Gates) -> bytes:
    """The export, made in another process: making it takes memory that is not the form's."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "subnet.onnx"
        words = [sys.executable, "-m", "edge_runtime.cli", "export", source, "--gates", str(gates), "-o", str(out)]
        subprocess.run(words, check=True, capture_output=True, cwd=ROOT)
        return out.read_bytes()


def _anonymous_mib() -> float:
    text = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Anonymous:")) / 1024


def _swap_loop(case: Case) -> dict[str, Any]:
    """A loop of 30 frames a second: p99 with ten swaps a second over without, and between two loops without (A/A)."""
    session = case.compiled(specialises=True)
    # Each differs from the full subnet in one decision, so they are about as fast; each swap makes another session.
    subnets = [case.space.default.replace(index, 1) for index in range(12)]
    inputs = random_inputs(session.inputs, seed=0)
    wanted = {gates: session.run(inputs, gates) for gates in subnets}
    frames, rounds = (60, 4) if case.quick else (300, 10)
    p99: dict[str, list[float]] = {"calm": [], "again": [], "swapping": []}
    wrong, before = 0, _grown()
    for number in range(rounds):
        if number == 1:
            before = _grown()  # by now as many sessions are kept as ever will be
        for kind, found in p99.items():
            times = []
            gates = subnets[0]
            for frame in range(frames):
                began = time.perf_counter()
                if kind == "swapping" and frame % 3 == 0:
                    gates = subnets[(frame // 3) % len(subnets)]
                    session.prefer(gates)
                at_ns = time.perf_counter_ns()
                outputs = session.run(inputs, gates)
                times.append((time.perf_counter_ns() - at_ns) / 1e6)
                wrong += not all(np.allclose(outputs[k], wanted[gates][k], rtol=1e-3, atol=1e-4) for k in outputs)
                time.sleep(max(0.0, 1 / RATE_HZ - (time.perf_counter() - began)))
            found.append(float(np.percentile(times, 99)))
    grown = {name: now - before[name] for name, now in _grown().items()}
    session.close()
    ratio = [swap / calm for swap, calm in zip(p99["swapping"], p99["calm"], strict=True)]
    same = [again / calm for again, calm in zip(p99["again"], p99["calm"], strict=True)]
    return {
        "p99_ratio": statistics.median(ratio),
        "a_a_ratio": statistics.median(same),
        "swaps": rounds * frames // 3,
        "wrong": wrong,
        "grown": grown,
    }


def _grown() -> dict[str, float]:
    return {
        "threads": threading.active_count(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "private_mib": round(_anonymous_mib(), 1),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="demo,runway,mobilenetv2,resnet50", help="some of these, joined by commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="fewer subnets and runs")
    parser.add_argument("--json", help="write the result to this file too")
    parser.add_argument("--memory", nargs=6, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    if given.memory:
        _memory_child(*given.memory)
    else:
        sys.exit(common.run("sessions", _bench, given))
