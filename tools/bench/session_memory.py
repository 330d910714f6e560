"""Memory of each form in a process of its own, and the error of the memory model.

Run as a script it is such a process: it runs one subnet and prints what that took.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from session_case import ROOT, Case

from edge_runtime import sense
from edge_runtime.backends import SessionOptions, open_session, open_static
from edge_runtime.backends.base import random_inputs
from edge_runtime.backends.onnx.compiled import CompiledSession
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError
from edge_runtime.gates import Gates
from edge_runtime.measure import MemoryModel
from edge_runtime.measure.calibrate import profiled
from edge_runtime.seeds import random_gates

FORMS = ("static", "naive", "tier1", "tier1_and_2")
RUNS = 25


def private_mib(case: Case, form: str) -> float:
    """Anonymous memory that a form adds in a process of its own, after runs of two subnets."""
    return _in_process(case, form, random_gates(case.space, random.Random(0)), others=True)["private_mib"]


def memory_model_error(case: Case) -> float:
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
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True, cwd=ROOT)
    seen: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seen


def _child(form: str, source: str, folder: str, threads: str, text: str, others: str) -> None:
    """Run one subnet, with `others` the full one now and then, and print what it took."""
    from edge_runtime.backends import runtime_versions

    options = SessionOptions(threads=int(threads))
    bundle = Bundle.read(source)
    default, gates = bundle.manifest.space.default, bundle.manifest.space.parse(text)
    static = _export_static(source, gates) if form == "static" else b""
    runtime_versions()  # imports onnxruntime

    light = bundle.without_contents()
    if form != "naive":
        del bundle
    before_mib = anonymous_mib()
    import onnx  # noqa: F401 - tier 2 needs it, so it counts; the memory model takes it as a part of the runtime

    session: Any
    if form == "static":
        session = open_static(static, options)
    elif form == "naive":
        session = open_session(bundle, options)
    else:
        session = CompiledSession(Path(folder), light.manifest, options, form="t", specialises=form == "tier1_and_2")
    inputs, before_bytes = random_inputs(session.inputs, seed=0), sense.process_share_bytes()
    with session.hold([gates]):
        for number in range(RUNS):
            session.run(inputs, default if int(others) and number % 5 == 0 else gates)
        private_mib, after_bytes = anonymous_mib() - before_mib, sense.process_share_bytes()
    print(json.dumps({"private_mib": private_mib, "before_bytes": before_bytes, "after_bytes": after_bytes}))


def _export_static(source: str, gates: Gates) -> bytes:
    """The export, made in another process: making it takes memory that is not the form's."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "subnet.onnx"
        words = [sys.executable, "-m", "edge_runtime.cli", "export", source, "--gates", str(gates), "-o", str(out)]
        subprocess.run(words, check=True, capture_output=True, cwd=ROOT)
        return out.read_bytes()


def anonymous_mib() -> float:
    """Pages of this process that no file backs, MiB."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Anonymous:")) / 1024


if __name__ == "__main__":
    _child(*sys.argv[1:])
