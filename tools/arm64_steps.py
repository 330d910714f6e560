"""What a device does with the bundled model, step by step, for `arm64_check.py`: each keeps its outputs and its facts.

A step raises where something is not as it has to be on every machine. Nothing here is about time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import edge_runtime
from edge_runtime import Budget, Bundle, EdgeModel, Gates
from edge_runtime.backends import Array, SessionOptions, open_session, open_static
from edge_runtime.backends.onnx.compiled import CompiledSession
from edge_runtime.backends.onnx.prepare import RECORD, SKELETON
from edge_runtime.cli.assets import demo_bundle, demo_images
from edge_runtime.inputs import Frame, load_npz, normalise, preprocess
from edge_runtime.seeds import covering_vectors, random_gates

__all__ = ["INCOMPARABLE", "STEPS", "TOLERANCE", "Look", "difference"]

TOLERANCE = 1e-4
"""Largest difference of an output of one machine from the other's, and of one form of the graph from another."""

INCOMPARABLE = sys.float_info.max
"""Instead of infinity, which JSON does not have."""

RANDOM_SUBNETS, FRAMES, ADAPTED_IMAGES, SWAP_ROUNDS = 6, 6, 48, 3


@dataclass
class Look:
    """What the steps share, and what they found."""

    folder: Path
    opened: ExitStack
    chosen_elsewhere: tuple[str, ...] = ()
    """Subnets to run besides: what `adapt` chose on other machines."""

    bundle: Bundle = field(default_factory=lambda: Bundle.read(demo_bundle()))
    model: EdgeModel | None = None
    arrays: dict[str, Array] = field(default_factory=dict)
    """Inputs and outputs, by step and subnet."""

    @property
    def live(self) -> EdgeModel:
        """The model that the step `load` left open."""
        _expect(self.model is not None, "no model was loaded")
        return self.model  # type: ignore[return-value]

    @property
    def prepared(self) -> Path:
        """The one folder of prepared files in the state directory."""
        (folder,) = (self.folder / "state").glob("compiled-*")
        return folder

    def load(self) -> EdgeModel:
        """Open the bundled model, with as many threads as the profile says; the state directory is this look's own."""
        return EdgeModel.load(demo_bundle(), budget=Budget(), state_dir=self.folder / "state")

    def subnets(self) -> list[Gates]:
        """The full one, the narrowest, every alternative at least once, and some at random; the same everywhere."""
        space, rng = self.bundle.manifest.space, random.Random(0)
        narrow = [max(i for i, name in enumerate(g.labels) if not i or name.startswith("narrow")) for g in space.groups]
        drawn = (random_gates(space, rng) for _ in range(RANDOM_SUBNETS))
        return list(dict.fromkeys([space.default, space.gates(narrow), *covering_vectors(space), *drawn]))

    def frames(self) -> list[Frame]:
        """Images of the package, and one of random pixels that has to be resized."""
        noise = np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)
        return [*load_npz(demo_images(), limit=FRAMES).images, noise]

    def inputs(self) -> dict[str, Array]:
        """A batch: two images, and two of values that no image has."""
        rng, spec = np.random.default_rng(1), self.bundle.manifest.preprocessing
        values = rng.random((2, 3, spec.height, spec.width), dtype=np.float32) * 4 - 2
        images = [normalise(image, spec)[None] for image in self.frames()[:2]]
        return {self.bundle.manifest.inputs[0].name: np.concatenate([*images, values])}

    def keep(self, name: str, outputs: dict[str, Array]) -> Array:
        """Note a run's one output for the comparison of machines, and hand it back."""
        (self.arrays[name],) = outputs.values()
        return self.arrays[name]


def _install(look: Look) -> dict[str, Any]:
    """What answers is the installed package, and there is no torch."""
    inside = Path(edge_runtime.__file__).resolve().is_relative_to(Path(sys.prefix).resolve())
    _expect(inside, "the package that answers is not the installed one")
    _expect(importlib.util.find_spec("torch") is None, "torch is installed")
    return {}


def _prepare(look: Look) -> dict[str, Any]:
    """The first load compiles the graph in a child process."""
    import onnx

    with look.load() as model:
        form = model.stats().form
    record = json.loads((look.prepared / RECORD).read_text())
    graph = onnx.load(str(look.prepared / SKELETON), load_external_data=False).graph
    counts = Counter(f"{node.domain or 'ai.onnx'}.{node.op_type}" for node in _nodes(graph))
    return {"form": form, "from_portable": record["error"], "operators": dict(sorted(counts.items()))}


def _load(look: Look) -> dict[str, Any]:
    """The second load takes what was prepared, and makes nothing again."""
    before = (look.prepared / RECORD).stat()
    look.model = look.opened.enter_context(look.load())
    _expect((look.prepared / RECORD).stat() == before, "the graph was prepared again")
    stats = look.model.stats()
    _expect(stats.backend != "onnxruntime-portable", f"the portable form serves: {stats.form}")
    return {"backend": stats.backend, "profile": stats.profile, "threads": stats.threads}


def _inputs(look: Look) -> dict[str, Any]:
    """Images are decoded, resized and normalised."""
    spec = look.bundle.manifest.preprocessing
    look.arrays |= {f"inputs/{number}": preprocess(frame, spec) for number, frame in enumerate(look.frames())}
    return {"images": len(look.frames())}


def _run(look: Look) -> dict[str, Any]:
    """Every subnet on one batch, in the prepared form and in the portable one."""
    portable, inputs = open_session(look.bundle), look.inputs()
    worst = 0.0
    for gates in look.subnets():
        wanted = look.keep(f"portable/{gates}", portable.run(inputs, gates))
        worst = max(worst, difference(wanted, look.keep(f"run/{gates}", look.live.infer(inputs, gates))))
    portable.close()
    return _agreed("from_portable", worst) | {"subnets": len(look.subnets()), "batch": len(wanted)}


def _swap(look: Look) -> dict[str, Any]:
    """The frame after a swap is answered by the new subnet, each time."""
    model, spec = look.live, look.bundle.manifest.preprocessing
    frames, swaps, worst = look.frames(), 0, 0.0
    for turn in range(SWAP_ROUNDS):
        for number, gates in enumerate(look.subnets()):
            frame = frames[(turn + number) % len(frames)]
            swaps += model.swap(gates) is not None
            answer = model(frame)
            _expect(
                answer.gates == gates and not answer.fallback, f"after the swap to {gates}, {answer.gates} answered"
            )
            (wanted,) = model.infer(preprocess(frame, spec)[None], gates).values()
            worst = max(worst, difference(wanted[0], look.keep(f"swap/{turn}/{gates}", answer.outputs)))
    _expect(model.stats().bad_outputs == 0, "outputs were refused")
    return _agreed("from_infer", worst) | {"swaps": swaps}


def _specialise(look: Look) -> dict[str, Any]:
    """A subnet alone in a session, on the same weight file, answers as the gated session does.

    Whether a specialised session is quicker decides about its use, and emulation cannot tell; so it is asked for here.
    """
    session = CompiledSession(look.prepared, look.bundle.manifest, SessionOptions(), form="asked", specialises=True)
    inputs, subnets, worst = look.inputs(), look.subnets(), 0.0
    gated = {gates: session.run(inputs, gates) for gates in subnets}
    with session.hold(subnets):
        _expect(set(session.specialised) == set(subnets), f"{len(session.specialised)} subnets got their own session")
        for gates in subnets:
            (wanted,) = gated[gates].values()
            worst = max(worst, difference(wanted, look.keep(f"specialise/{gates}", session.run(inputs, gates))))
    session.close()
    return _agreed("from_gated", worst) | {"subnets": len(subnets)}


def _export(look: Look) -> dict[str, Any]:
    """A subnet as a plain file: by the library and by the command, and what the file answers."""
    gates, path = look.subnets()[-1], look.folder / "subnet.onnx"
    look.live.export(path, gates)
    data = path.read_bytes()
    static = open_static(data)
    found = look.keep(f"export/{gates}", static.run(look.inputs()))
    static.close()
    (wanted,) = look.live.infer(look.inputs(), gates).values()
    _command("export", demo_bundle(), "--gates", str(gates), "-o", str(path))
    _expect(path.read_bytes() == data, "the command exports another file than the library")
    return _agreed("from_gated", difference(wanted, found)) | {"sha256": hashlib.sha256(data).hexdigest()}


def _adapt(look: Look) -> dict[str, Any]:
    """A search on images without labels, and on a budget, ends with a subnet of this model, which then answers."""
    images = load_npz(demo_images(), limit=ADAPTED_IMAGES).images
    status = look.live.adapt(images, budget=Budget(fraction=0.6), wait=True)
    _expect(status.phase == "done" and status.active == look.live.gates, f"{status.phase}: {status.reason}")
    fates = {candidate.fate for candidate in status.candidates if candidate.score.gates == status.active}
    _expect(bool(fates & {"chosen", "kept"}), f"what is active was not chosen: {fates}")
    for gates in (str(status.active), *look.chosen_elsewhere):
        look.keep(f"adapt/{gates}", look.live.infer(look.inputs(), gates))
    return {"images": status.samples, "candidates": len(status.candidates), "chosen": str(status.active)}


def _commands(look: Look) -> dict[str, Any]:
    """The command that was installed."""
    return {verb: _command(verb, demo_bundle()).splitlines()[0].strip() for verb in ("verify", "inspect")}


STEPS: dict[str, Callable[[Look], dict[str, Any]]] = {
    "install": _install,
    "prepare": _prepare,
    "load": _load,
    "inputs": _inputs,
    "run": _run,
    "swap": _swap,
    "specialise": _specialise,
    "export": _export,
    "adapt": _adapt,
    "commands": _commands,
}
"""In this order: later ones use what earlier ones opened."""


def difference(one: Array, other: Array) -> float:
    """Largest absolute difference; `INCOMPARABLE` where shapes differ or a value is not finite."""
    if one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return INCOMPARABLE
    return float(np.abs(one.astype(np.float64) - other).max(initial=0.0))


def _agreed(name: str, worst: float) -> dict[str, float]:
    _expect(worst <= TOLERANCE, f"outputs differ by {worst:.1e} {name.replace('_', ' the ')}")
    return {name: worst}


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _command(*words: str) -> str:
    """What `nnf-edge` of this environment prints; it must end well."""
    command = [str(Path(sys.prefix) / "bin" / "nnf-edge"), *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    _expect(ended.returncode == 0, f"nnf-edge {words[0]}: exit code {ended.returncode}: {ended.stderr[-300:]}")
    return ended.stdout


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those of branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
