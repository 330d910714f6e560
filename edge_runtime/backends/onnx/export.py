"""One subnet to take away: a plain static ONNX file that needs neither nnf-edge nor a gate input.

The gates are inlined into the portable graph, weights that are stored in 8 bits for float32 are decoded, every
BatchNormalization is folded into the convolution before it, and the weights that are left are embedded. Standard
operators only, so that any ONNX runtime takes it. The result is compared with the gated graph before it is given away.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np

from edge_runtime.backends.base import Array, SessionOptions, random_inputs, relative_difference
from edge_runtime.backends.onnx.check import check_graph
from edge_runtime.backends.onnx.modules import read_tensor
from edge_runtime.backends.onnx.passes import inline_gates
from edge_runtime.backends.onnx.quantised import tolerance_of
from edge_runtime.backends.onnx.session import foreign_errors, open_portable
from edge_runtime.backends.onnx.static import open_static
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError
from edge_runtime.gates import Gates

__all__ = ["export_subnet"]

TOLERANCE = 1e-4
"""Largest difference from the gated graph, relative to the largest output: folding rounds once more."""

CHECKED = (1, 2, 5)
"""Batch sizes of the inputs that are compared."""


def export_subnet(bundle: Bundle, gates: Gates) -> bytes:
    """A serialised ModelProto that computes one subnet; the batch dimension stays free.

    Raises:
        BundleError: The bundle's graph is refused.
        BackendError: The result differs from the gated graph, or cannot be made.
    """
    import onnx

    check_graph(bundle)
    model = onnx.load_from_string(bundle.model_bytes)
    with foreign_errors("the subnet cannot be exported"):
        read = partial(read_tensor, weights=bundle.weights)
        static = inline_gates(model, {bundle.manifest.gate_input: np.array(gates.vector(), np.int64)}, read=read)
        _decode_weights(static.graph, bundle.weights)
        _Folding(static.graph, bundle.weights).fold()
    static.producer_name = "nnf-edge"
    static.doc_string = f"{bundle.manifest.name}, subnet {gates}, of the bundle {bundle.digest}"
    with foreign_errors("the exported graph is not valid ONNX"):
        onnx.checker.check_model(static, full_check=True)
    data = bytes(static.SerializeToString(deterministic=True))
    _compare(bundle, gates, data, tolerance_of(static.graph, TOLERANCE))
    return data


def _compare(bundle: Bundle, gates: Gates, data: bytes, tolerance: float) -> None:
    options = SessionOptions()
    gated, alone = open_portable(bundle, options), open_static(data, options)
    try:
        for batch in CHECKED:
            inputs = random_inputs(bundle.manifest.inputs, seed=batch, batch=batch)
            wanted, found = gated.run(inputs, gates), alone.run(inputs)
            for name, value in wanted.items():
                worst = relative_difference(value, found[name])
                if not worst <= tolerance:
                    raise BackendError(f"output {name!r} of the exported subnet differs by {worst:.1e}")
    finally:
        gated.close()
        alone.close()


def _decode_weights(graph: Any, weights: bytes) -> None:
    """Turn weights in 8 bits that convolutions in float32 read into initializers of float32, in place."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in tensors:
            kept.append(node)
            continue
        codes, scale = (read_tensor(tensors[name], weights) for name in node.input)
        values = codes.astype(np.float32) * scale.reshape(-1, *(1,) * (codes.ndim - 1))
        graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
    graph.ClearField("node")
    graph.node.extend(kept)


class _Folding:
    """Folds every BatchNormalization behind a convolution that nothing else reads."""

    def __init__(self, graph: Any, weights: bytes) -> None:
        self._graph, self._weights = graph, weights
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._uses = Counter(name for node in graph.node for name in node.input)
        self._uses.update(value.name for value in graph.output)
        self._folded: dict[str, Array] = {}

    def fold(self) -> None:
        """Rewrite the graph in place, its weights embedded."""
        from onnx import numpy_helper

        makers = {node.output[0]: node for node in self._graph.node if node.op_type == "Conv"}
        kept = []
        for node in self._graph.node:
            conv = makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
            if conv is not None and self._uses[conv.output[0]] == 1:
                self._into(conv, node)
                makers[conv.output[0]] = conv  # another normalisation may follow
            else:
                kept.append(node)
        self._graph.ClearField("node")
        self._graph.node.extend(kept)
        used = dict.fromkeys(name for node in kept for name in node.input)
        tensors = [(name, self._value(name)) for name in used if name in self._tensors or name in self._folded]
        self._graph.ClearField("initializer")
        self._graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors)

    def _into(self, conv: Any, norm: Any) -> None:
        scale, shift, mean, variance = (self._value(name).astype(np.float64) for name in norm.input[1:5])
        epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        weight = self._value(conv.input[1]).astype(np.float64)
        bias = self._value(conv.input[2]).astype(np.float64) if len(conv.input) > 2 else 0.0
        scaled = conv.input[1]
        if self._uses[scaled] > 1:  # another convolution has the same weights
            self._uses[scaled] -= 1
            scaled = self._free(f"{conv.output[0]}.weight")
        self._folded[scaled] = (weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))).astype(np.float32)
        name = self._free(f"{conv.output[0]}.bias")
        self._folded[name] = (shift + (bias - mean) * factor).astype(np.float32)
        conv.input[:] = [conv.input[0], scaled, name]
        conv.output[0] = norm.output[0]

    def _free(self, wanted: str) -> str:
        name = wanted
        while name in self._tensors or name in self._folded:
            name += "~"
        return name

    def _value(self, name: str) -> Array:
        """A tensor, as folded so far."""
        return self._folded[name] if name in self._folded else read_tensor(self._tensors[name], self._weights)
