"""Weights that gates switch channels of become inputs of the graph: they are gathered outside, once for each subnet.

Inside the graph every run would pick them again, and onnxruntime cannot move the axis-1 kind quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Lifted", "lift_switched"]


@dataclass(frozen=True, slots=True)
class Lifted:
    """One weight that has to be fed."""

    name: str
    """Of the graph input."""

    weight: Any
    """TensorProto with everything on."""

    channels: Any
    """TensorProto, int64: the entry of the gate vector for each element along the axis."""

    axis: int


def lift_switched(model: Any) -> tuple[Lifted, ...]:
    """Replace every Compress of a portable ModelProto by a graph input of its name, in place.

    The model has to be one that `check_graph` lets through: conditions come from a Cast of a Gather of the gates.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    lifted: list[Lifted] = []
    for node in graph.node:
        if node.op_type == "Compress":
            gather = makers[makers[node.input[1]].input[0]]
            axis = next(int(attribute.i) for attribute in node.attribute if attribute.name == "axis")
            lifted.append(Lifted(node.output[0], tensors[node.input[0]], tensors[gather.input[1]], axis))
    graph.input.extend(_input(each) for each in lifted)
    _drop_picking(graph)
    return tuple(lifted)


def _input(lifted: Lifted) -> Any:
    """The declaration of a graph input whose size along the axis is free."""
    from onnx import TensorProto, ValueInfoProto

    info = ValueInfoProto(name=lifted.name)
    info.type.tensor_type.elem_type = TensorProto.FLOAT
    for position, size in enumerate(lifted.weight.dims):
        dim = info.type.tensor_type.shape.dim.add()
        if position != lifted.axis:
            dim.dim_value = size
    return info


def _drop_picking(graph: Any) -> None:
    """Remove the nodes that picked; onnxruntime drops the tensors that nothing reads any more."""
    casts = [node for node in graph.node if node.op_type == "Cast"]
    gathered = {name for node in casts for name in node.input}
    kept = [
        node
        for node in graph.node
        if node.op_type not in ("Compress", "Cast") and not gathered.intersection(node.output)
    ]
    graph.ClearField("node")
    graph.node.extend(kept)
