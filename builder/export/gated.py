"""The whole supernet as one ONNX graph whose decisions are `If` nodes over an int64 gate vector.

At each decision point the original is tested first, then a balanced tree over the rest. A window is one outer `If`: its
first branch holds the units with their own decisions, its second the merged alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from builder.elastify.supernet import Supernet
from builder.export.lower import lower, lower_many
from builder.export.names import graph_inputs, graph_outputs, tensor_info
from builder.onnx_writer import GraphWriter

__all__ = ["GatedGraph", "gated_graph"]


@dataclass(frozen=True, slots=True)
class GatedGraph:
    """An exported graph and the content of its weight file."""

    model_bytes: bytes
    """Serialised ModelProto; tensors of 1 KiB and more lie in the weight file."""

    weights: bytes
    """Raw little-endian tensors."""


def gated_graph(supernet: Supernet) -> GatedGraph:
    """Export `supernet` (in eval mode): its inputs and ``gates`` int64, its outputs; named as `names` says.

    Raises:
        BuildError: an operation of the network has no translation.
    """
    return _Gated(supernet).build()


class _Gated:
    def __init__(self, supernet: Supernet) -> None:
        self._supernet = supernet.eval()
        self._writer = GraphWriter(shared=True)

    def build(self) -> GatedGraph:
        writer, supernet = self._writer, self._supernet
        for index in range(len(supernet.units)):
            writer.node(
                "Gather", ["gates", writer.scalar(index)], f"gather_{index}", {"axis": 0}, output=f"gate_{index}"
            )
        inputs, outputs = graph_inputs(supernet.program), graph_outputs(supernet.program)
        values, index = dict(zip(supernet.program.inputs, inputs, strict=True)), 0
        while index < len(supernet.segments):
            unit, segment = supernet.unit_of.get(index), supernet.segments[index]
            if unit is None:
                made = lower_many(writer, segment.module, f"fixed{index}", [values[name] for name in segment.inputs])
                values.update(zip(segment.outputs, made, strict=True))
                index += 1
            else:
                span = supernet.space.groups[unit].window
                values[supernet.segments[index + span - 1].outputs[0]] = self._decide(unit, values[segment.inputs[0]])
                index += span
        for number, (name, value) in enumerate(zip(outputs, supernet.output_names, strict=True)):
            writer.node("Identity", [values[value]], f"output_{number}" if number else "output", output=name)
        gates = helper.make_tensor_value_info("gates", TensorProto.INT64, [supernet.space.width])
        model = writer.model(
            [*map(tensor_info, inputs.items()), gates], [*map(tensor_info, outputs.items())], "supernet"
        )
        return GatedGraph(model.SerializeToString(deterministic=True), bytes(writer.weights))

    def _decide(self, unit: int, x: str) -> str:
        """The decision point of a unit, or the outer one of the window that starts there."""
        group = self._supernet.space.groups[unit]
        merged = [value for value, span in enumerate(group.spans) if span > 1]
        if not merged:
            return self._choose(unit, x)
        shape = self._out_shape(unit + group.window - 1)
        name = f"window_{unit}"
        condition = self._writer.node("Less", [f"gate_{unit}", self._writer.scalar(merged[0])], f"{name}_test")
        then = self._branch(f"{name}_units", shape, lambda: self._chain(unit, group.window, x))
        other = self._branch(f"{name}_merged", shape, lambda: self._tree(unit, merged, x, f"{name}_tree"))
        return self._writer.node("If", [condition], name, {"then_branch": then, "else_branch": other})

    def _chain(self, first: int, count: int, x: str) -> str:
        """The units of a window one behind the other, each with its own decision point."""
        for unit in range(first, first + count):
            x = self._choose(unit, x)
        return x

    def _choose(self, unit: int, x: str) -> str:
        """The decision point of one unit: the original first, then a tree over its other unmerged alternatives."""
        name = f"group_{unit}"
        values = [value for value, span in enumerate(self._supernet.space.groups[unit].spans) if span == 1]
        if len(values) == 1:
            return self._alternative(unit, values[0], x)
        shape = self._out_shape(unit)
        condition = self._writer.node("Equal", [f"gate_{unit}", self._writer.scalar(values[0])], f"{name}_test")
        then = self._branch(f"{name}_{values[0]}", shape, lambda: self._alternative(unit, values[0], x))
        other = self._branch(f"{name}_rest", shape, lambda: self._tree(unit, values[1:], x, f"{name}_tree"))
        return self._writer.node("If", [condition], name, {"then_branch": then, "else_branch": other})

    def _tree(self, unit: int, values: Sequence[int], x: str, name: str) -> str:
        """A balanced tree of `Less` over ascending values."""
        if len(values) == 1:
            return self._alternative(unit, values[0], x)
        half = len(values) // 2
        shape = self._out_shape(unit + self._supernet.space.groups[unit].spans[values[0]] - 1)
        condition = self._writer.node("Less", [f"gate_{unit}", self._writer.scalar(values[half])], f"{name}_test")
        then = self._branch(f"{name}_low", shape, lambda: self._tree(unit, values[:half], x, name))
        other = self._branch(f"{name}_high", shape, lambda: self._tree(unit, values[half:], x, name))
        branches = {"then_branch": then, "else_branch": other}
        return self._writer.node("If", [condition], f"{name}_{values[half]}", branches)

    def _out_shape(self, unit: int) -> tuple[int, ...]:
        return self._supernet.segments[self._supernet.units[unit].segment].out_shape

    def _branch(self, name: str, shape: Sequence[int], body: Callable[[], str]) -> onnx.GraphProto:
        self._writer.open_branch()
        output = body()
        return self._writer.close_branch(self._writer.unique(name), output, shape)

    def _alternative(self, unit: int, value: int, x: str) -> str:
        label = self._supernet.space.groups[unit].labels[value]
        return lower(self._writer, self._supernet.alternative(unit, value), f"unit{unit}.{label}", x)
