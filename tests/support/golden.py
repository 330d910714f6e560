"""The values behind tests/golden, which are never written again: a file of version 1 must be read for ever.

`python -m tests.support.golden DIR` writes them to a new directory, for a new version of the format.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge_runtime.bundle import Manifest, Preprocessing, Provenance, Task, TensorSpec, write_bundle
from edge_runtime.gates import GateGroup, GateSpace
from tests.support.tiny import tiny_bundle, tiny_reference

MODEL = b"not a graph, only bytes"
WEIGHTS = bytes(range(256))


def golden_manifest(*, reverse: bool = False) -> Manifest:
    """Every kind of group, non-ASCII text, numbers of all shapes; `reverse` turns the order of all mappings around."""
    versions = {"torch": "2.9.0", "onnx": "1.19.0"}
    figures = {"oracle_accuracy": 0.912, "subnets": 12.0, "tiny": 1e-9}
    if reverse:
        versions, figures = dict(reversed(versions.items())), dict(reversed(figures.items()))
    return Manifest(
        name="golden",
        space=GateSpace(
            (
                GateGroup("stage1.unit0", "choice", ("original", "narrow50", "merged2"), (1, 1, 2)),
                GateGroup("stage1.unit1", "choice", ("original", "skip")),
                GateGroup("head", "experts", ("vehicles", "animals")),
                GateGroup("wide", "subset", ("m0", "m1", "m2")),
            )
        ),
        inputs=(TensorSpec("image", "float32", (None, 3, 64, 48)), TensorSpec("extra", "int64", (None, 2))),
        outputs=(TensorSpec("logits", "float32", (None, 2)), TensorSpec("features", "float32", (None, 8, 4, 3))),
        gate_input="gates",
        preprocessing=Preprocessing(64, 48, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        task=Task("classification", ("Schraube", "Öse")),
        prior=((0.0, 0.01, 0.025), (0.0, 0.5), (0.0, 0.0), (0.1, 0.2, 0.3)),
        provenance=Provenance("net 1.0", "made up", "by hand", 7, versions, "python -m x", "2026-01-01T00:00:00Z"),
        figures=figures,
    )


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_bundle(folder / "plain_v1.nnf", golden_manifest(), MODEL, WEIGHTS)
    write_bundle(folder / "plain_v1", golden_manifest(), MODEL, WEIGHTS)
    (folder / "plain_v1" / "manifest.json").rename(folder / "plain_v1.manifest.json")
    for name in ("model.onnx", "weights.bin"):
        (folder / "plain_v1" / name).unlink()
    (folder / "plain_v1").rmdir()
    bundle = tiny_bundle(folder / "tiny_v1.nnf")
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    logits = {str(gates): tiny_reference(gates, images) for gates in bundle.manifest.space.enumerate()}
    np.savez_compressed(folder / "tiny_v1_logits.npz", images=images, **logits)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
