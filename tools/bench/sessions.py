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
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
from session_case import ROOT, Case
from session_latency import latency_model_error
from session_memory import FORMS as MEMORY_FORMS
from session_memory import memory_model_error, private_mib
from session_swaps import swap_cost, swap_loop

from edge_runtime.backends import SessionOptions, compile_bundle, export_subnet, open_session, open_static
from edge_runtime.backends.base import Session, random_inputs
from edge_runtime.bundle import Bundle
from edge_runtime.measure import Candidate, measure_candidates

SHIPPED = {"demo": ROOT / "edge_runtime/assets/demo.nnf", "runway": ROOT / "tests/data/runway.nnf"}
GENERATED = ("mobilenetv2", "resnet50")
FORMS = ("static", "tier1", "tier2", "naive")


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
                loop = swap_loop(case)
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
        **swap_cost(case),
        "private_mib": {form: private_mib(case, form) for form in MEMORY_FORMS},
        "latency_model": latency_model_error(case),
        "memory_model_error": memory_model_error(case),
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="demo,runway,mobilenetv2,resnet50", help="some of these, joined by commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="fewer subnets and runs")
    parser.add_argument("--json", help="write the result to this file too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(common.run("sessions", _bench, _arguments()))
