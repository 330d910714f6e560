"""A plain ONNX graph without gates: the oracle as the yardstick of latency, or one subnet."""

from __future__ import annotations

from torch import nn

from builder.elastify.segments import Program, find_program, value_names
from builder.elastify.supernet import Supernet
from builder.elastify.trace import Inputs, trace
from builder.export.lower import lower_many
from builder.export.names import graph_inputs, graph_outputs, tensor_info
from builder.onnx_writer import GraphWriter
from edge_runtime.gates import Gates

__all__ = ["static_graph", "static_model"]


def static_model(model: nn.Module, example: Inputs) -> bytes:
    """Export any traced network with its weights inside; inputs and outputs are named as `names` says.

    Raises:
        UsageError: the network cannot be traced.
        BuildError: an operation of the network has no translation.
    """
    program = find_program(trace(model, example))
    return _write(program, [segment.module for segment in program.segments], [1] * len(program.segments))


def static_graph(supernet: Supernet, gates: Gates) -> bytes:
    """Export one subnet as if it had been built alone."""
    supernet.eval()
    modules, spans = [], []
    for index, segment in enumerate(supernet.segments):
        unit = supernet.unit_of.get(index)
        value = 0 if unit is None else int(gates.values[unit])
        modules.append(segment.module if unit is None else supernet.alternative(unit, value))
        spans.append(1 if unit is None else supernet.units[unit].alternatives[value].span)
    return _write(supernet.program, modules, spans)


def _write(program: Program, modules: list[nn.Module], spans: list[int]) -> bytes:
    """The chosen module of each segment; one with a span stands for the segments behind it too."""
    writer = GraphWriter(external=False)
    inputs, outputs = graph_inputs(program), graph_outputs(program)
    values, index = dict(zip(program.inputs, inputs, strict=True)), 0
    while index < len(program.segments):
        segment = program.segments[index]
        prefix = f"unit{index}" if segment.elastic else f"fixed{index}"
        made = lower_many(writer, modules[index], prefix, [values[name] for name in segment.inputs])
        index += spans[index]
        values.update(zip(program.segments[index - 1].outputs, made, strict=True))
    for number, (name, value) in enumerate(zip(outputs, value_names(program.structure), strict=True)):
        writer.node("Identity", [values[value]], f"output_{number}" if number else "output", output=name)
    model = writer.model([*map(tensor_info, inputs.items())], [*map(tensor_info, outputs.items())], "static")
    return bytes(model.SerializeToString(deterministic=True))
