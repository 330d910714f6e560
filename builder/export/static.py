"""A plain ONNX graph without gates: the oracle as the yardstick of latency, or one subnet."""

from __future__ import annotations

import torch
from onnx import TensorProto, helper
from torch import nn

from builder.elastify.supernet import Supernet
from builder.elastify.trace import shape_of, trace
from builder.export.lower import lower
from builder.onnx_writer import GraphWriter
from edge_runtime.gates import Gates

__all__ = ["static_graph", "static_model"]


def static_model(model: nn.Module, example: torch.Tensor) -> bytes:
    """Export any traced network with its weights inside: ``image`` [N, C, H, W] to ``logits`` [N, K].

    Raises:
        BuildError: an operation of the network has no translation.
    """
    return _write([("network", trace(model, example))], tuple(example.shape[1:]))


def static_graph(supernet: Supernet, gates: Gates) -> bytes:
    """Export one subnet as if it had been built alone."""
    supernet.eval()
    pieces: list[tuple[str, nn.Module]] = []
    index = 0
    while index < len(supernet.segments):
        unit = supernet.unit_of.get(index)
        if unit is None:
            pieces.append((f"fixed{index}", supernet.segments[index].module))
            index += 1
        else:
            value = int(gates.values[unit])
            pieces.append((f"unit{unit}", supernet.alternative(unit, value)))
            index += supernet.units[unit].alternatives[value].span
    return _write(pieces, supernet.segments[0].in_shape)


def _write(pieces: list[tuple[str, nn.Module]], in_shape: tuple[int, ...]) -> bytes:
    writer = GraphWriter(external=False)
    x = "image"
    for name, module in pieces:
        x = lower(writer, module, name, x)
    writer.node("Identity", [x], "output", output="logits")
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *in_shape])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", _classes(pieces[-1][1])])]
    return bytes(writer.model(inputs, outputs, "static").SerializeToString(deterministic=True))


def _classes(head: nn.Module) -> int:
    """Width of the network's output; the head is always a traced, fixed piece."""
    output = next(node for node in head.graph.nodes if node.op == "output")
    return shape_of(output.all_input_nodes[0])[1]
