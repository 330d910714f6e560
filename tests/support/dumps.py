"""The tiny bundle as onnxruntime optimises and dumps it, for the tests of what is made of such a dump."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edge_runtime.backends import SessionOptions
from edge_runtime.backends.onnx.passes import keep_blocked, make_names_unique, value_shapes
from edge_runtime.backends.onnx.passes.names import branches_of
from edge_runtime.backends.onnx.session import create_dump, create_prepared
from edge_runtime.bundle import Bundle
from tests.support.tiny import tiny_bundle

OPTIONS = SessionOptions()


class Dump:
    """A tiny bundle, optimised and dumped by onnxruntime."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle: Bundle = tiny_bundle(folder / "tiny.nnf")
        create_dump(self.bundle, OPTIONS, folder / "raw.onnx", "tensors.bin", blocked=True)

    def model(self) -> Any:
        model = onnx.load(str(self.folder / "raw.onnx"), load_external_data=False)
        make_names_unique(model)
        return model

    def crossed(self) -> tuple[Any, Any]:
        model = self.model()
        return model, keep_blocked(model, value_shapes(onnx.load_from_string(self.bundle.model_bytes)))

    def session(self, model: Any) -> Any:
        return create_prepared(model.SerializeToString(), OPTIONS, folder=self.folder)


def settled(vector: Sequence[int]) -> dict[str, Any]:
    """What `inline_gates` takes for a gate vector."""
    return {"gates": np.array(vector, np.int64)}


def image(batch: int = 1) -> Any:
    return np.random.default_rng(0).standard_normal((batch, 3, 16, 16)).astype(np.float32)


def nodes_of(graph: Any) -> list[Any]:
    inner = [inside for node in graph.node for branch in branches_of(node) for inside in nodes_of(branch)]
    return [*graph.node, *inner]


def operators(model: Any) -> Counter[str]:
    return Counter(f"{node.domain}.{node.op_type}" for node in nodes_of(model.graph))
