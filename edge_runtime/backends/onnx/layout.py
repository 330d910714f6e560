"""Which convolutions of a graph onnxruntime really runs in its blocked NCHWc layout (x86 only)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.backends.base import SessionOptions
from edge_runtime.backends.onnx.session import create_native

__all__ = ["LayoutReport", "convolution_layouts"]

NCHWC_DOMAIN = "com.microsoft.nchwc"


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """Convolutions of the optimised graph, branches included."""

    blocked: tuple[str, ...]
    """Node names of those in NCHWc."""

    plain: tuple[str, ...]
    """Node names of those in the plain layout; where NCHWc does not exist (aarch64) all of them."""


def convolution_layouts(model_bytes: bytes, weights: bytes, options: SessionOptions, scratch: Path) -> LayoutReport:
    """Optimise the graph as a session would and count its convolutions by layout.

    `scratch` is an existing directory that takes the optimised graph; the caller removes it.
    Raises as `edge_runtime.backends.open_session`.
    """
    import onnx

    dumped = scratch / "optimised.onnx"
    create_native(model_bytes, weights, options, dump_to=dumped)
    nodes = list(_nodes(onnx.load(str(dumped), load_external_data=False).graph))
    convolutions = [node for node in nodes if node.op_type in ("Conv", "FusedConv")]
    blocked = tuple(node.name for node in convolutions if node.domain == NCHWC_DOMAIN)
    return LayoutReport(blocked, tuple(node.name for node in convolutions if node.domain != NCHWC_DOMAIN))


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
