"""A model whose latency and quality are scripted: a fake session on its own clock, and the table that predicts it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime import EdgeModel
from edge_runtime.additive import AdditiveCost
from edge_runtime.backends import SessionOptions
from edge_runtime.backends.fake import FakeSession
from edge_runtime.bundle import Bundle, Manifest, Preprocessing, Provenance, Task, TensorSpec
from edge_runtime.gates import GateGroup, Gates, GateSpace
from edge_runtime.measure import LatencyModel
from edge_runtime.profiles import load_profile
from edge_runtime.state import StateDir

SIZE = 4
CLASSES = ("bolt", "nut", "washer", "spring")
GROUPS = 5
SPACE = GateSpace(
    tuple(
        GateGroup(f"unit{i}", "choice", ("original", "narrow", "skip", *(["merged"] if i == 1 else [])), spans)
        for i, spans in enumerate(((), (1, 1, 1, 2), (), (), ()))
    )
)
COST = AdditiveCost(
    SPACE, 2.0, ((2.0, 1.2, 0.1), (2.0, 1.1, 0.1, 2.3), (2.0, 1.0, 0.1), (2.0, 0.9, 0.1), (2.0, 0.8, 0.1))
)
"""True milliseconds; the full subnet takes 12, the fastest 2.5."""

DAMAGE = ((0.0, 0.02, 0.2), (0.0, 0.01, 0.1, 0.02), (0.0, 0.04, 0.3), (0.0, 0.01, 0.05), (0.0, 0.02, 0.1))
"""Share of images that an alternative answers wrongly, beside the others' shares; the bundle's prior, too."""

PRIOR = AdditiveCost.damage(SPACE, DAMAGE)
PREPROCESSING = Preprocessing(SIZE, SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
INPUTS = (TensorSpec("image", "float32", (None, 3, SIZE, SIZE)),)
OUTPUTS = (TensorSpec("logits", "float32", (None, len(CLASSES))),)


def scripted_images(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Random images uint8 [count, 4, 4, 3]; each shows the class that its first pixel says."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def true_labels(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The class of each image."""
    return images[:, 0, 0, 0].astype(np.int64) % len(CLASSES)


def right(gates: Gates, image: npt.NDArray[np.uint8]) -> bool:
    """Whether a subnet answers an image rightly: each alternative spoils its own share of all images."""
    for index, (value, active) in enumerate(zip(gates.values, gates.active, strict=True)):
        draw = zlib.crc32(image.tobytes() + bytes([index])) / 2**32
        if active and draw < DAMAGE[index][int(value)]:  # type: ignore[arg-type]
            return False
    return True


def answer(inputs: Mapping[str, Any], gates: Gates) -> dict[str, Any]:
    """Logits: sure of the right class, or of the next one."""
    images = np.rint(inputs["image"] * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    labels = true_labels(images)
    logits = np.zeros((len(images), len(CLASSES)), np.float32)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        logits[row, label if right(gates, image) else (label + 1) % len(CLASSES)] = 6.0
    return {"logits": logits}


def jittered_cost(cost: AdditiveCost = COST, *, spread: float = 0.05, seed: int = 0) -> Callable[[Gates], float]:
    """Milliseconds of one run: the true cost with a tail of up to `spread` on top."""
    rng = np.random.default_rng(seed)
    return lambda gates: cost(gates) * (1 + spread * float(rng.random()) ** 3)


def spiky_cost(share: float, *, seed: int = 0) -> Callable[[Gates], float]:
    """Milliseconds of one run on a machine that is disturbed in `share` of all runs: those take twice as long."""
    rng = np.random.default_rng(seed)
    return lambda gates: COST(gates) * (1 + 0.02 * float(rng.random()) + (float(rng.random()) < share))


def scripted_session(cost_ms: Callable[[Gates], float] | None = None, reply: Any = answer) -> FakeSession:
    """The session of the scripted model."""
    return FakeSession(SPACE, INPUTS, OUTPUTS, cost_ms=cost_ms or jittered_cost(), answer=reply)


def scripted_table(scale: float = 1.0) -> LatencyModel:
    """What a calibration would give; a `scale` other than 1 makes it wrong."""
    rows = tuple(tuple(entry * scale for entry in row) for row in COST.entries)
    return LatencyModel(AdditiveCost(SPACE, COST.base * scale, rows), 1.04, "kernels", 0.01)


def scripted_bundle() -> Bundle:
    """A bundle in memory that says what the scripted model is; its graph is never opened."""
    manifest = Manifest(
        name="scripted",
        space=SPACE,
        inputs=INPUTS,
        outputs=OUTPUTS,
        gate_input="gates",
        preprocessing=PREPROCESSING,
        task=Task("classification", CLASSES),
        prior=DAMAGE,
        provenance=Provenance("scripted", "random", "tests", 0, {}, "pytest", "2026-01-01T00:00:00Z"),
    )
    return Bundle(manifest, "0" * 64, b"", b"", "scripted")


def scripted_model(
    tmp_path: Path | None = None, *, reply: Any = answer, cost_ms: Any = None, **settings: Any
) -> EdgeModel:
    """An `EdgeModel` on the scripted session, its clock included; it keeps its state in `tmp_path`, if one is given."""
    session = scripted_session(cost_ms, reply)
    return EdgeModel(
        scripted_bundle(),
        session,
        SessionOptions(),
        profile=load_profile("generic-x86_64"),
        state=StateDir.open(tmp_path) if tmp_path else StateDir(None, "no state in this test"),
        table=scripted_table(),
        clock_ns=session.now_ns,
        **settings,
    )
