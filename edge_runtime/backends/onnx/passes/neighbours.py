"""Units in 8 bits that follow each other, in the graph of one subnet: what is between them stays as they have it.

Alone a unit takes and gives blocked values, as its neighbours may be in float32. Where both are in 8 bits the value
would be converted to the blocked layout and back, and where they have the same coding decoded and coded again. The
numbers are the same with and without this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edge_runtime.backends.onnx.passes.conversions import NCHWC_DOMAIN
from edge_runtime.backends.onnx.passes.crossing import PLACELESS
from edge_runtime.backends.onnx.passes.names import integer_of

__all__ = ["BACK", "join_neighbours"]

BACK = "~back"
"""Behind the name of a node, the name of the conversion of what it gives to the blocked layout."""

_ELEMENTWISE = PLACELESS | {"Add"}
"""Operators that give the same numbers in any layout."""


def join_neighbours(graph: Any, pause: Callable[[], None] | None = None) -> None:
    """Rewrite a GraphProto without branches, in order and with unique names, in place; `pause` as of `inline_gates`."""
    if not any(_converts(node, "ReorderOutput") for node in graph.node):
        return
    joined = _Joined(graph)
    for node in graph.node:
        joined.take(node)
        if pause:
            pause()
    outputs = {value.name for value in graph.output}
    nodes = _needed(joined.nodes, outputs)
    read = outputs.union(*(node.input for node in nodes))
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    graph.ClearField("node")
    graph.ClearField("initializer")
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)


class _Joined:
    """The nodes so far, some of them for nothing."""

    def __init__(self, graph: Any) -> None:
        self.nodes: list[Any] = []
        self._outputs = {value.name for value in graph.output}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._wanted = _wanted_last(graph.node)
        self._last: dict[str, str] = {}
        """A blocked value and the same with the channels last."""
        self._coded: dict[str, Any] = {}
        """What a DequantizeLinear gives, and that node."""
        self._alias: dict[str, str] = {}

    def take(self, node: Any) -> None:
        """Keep a node, put another one in its place, or leave it out where its value is there already."""
        node.input[:] = [self._alias.get(name, name) for name in node.input]
        if _converts(node, "ReorderInput"):
            self._last[node.output[0]] = node.input[0]
        elif _converts(node, "ReorderOutput"):
            if self._replaced(node, self._last.get(node.input[0])):
                return
            self._last[node.input[0]] = node.output[0]
        elif node.op_type == "DequantizeLinear":
            self._coded[node.output[0]] = node
        elif node.op_type == "QuantizeLinear" and self._replaced(node, self._codes(node)):
            return
        self.nodes.append(node)
        if node.op_type in _ELEMENTWISE and node.output[0] in self._wanted:
            self._stay_last(node)

    def _replaced(self, node: Any, same: str | None) -> bool:
        """Whether a value that is there already takes the place of what a node gives."""
        if same is None or node.output[0] in self._outputs:
            return False
        self._alias[node.output[0]] = same
        return True

    def _codes(self, node: Any) -> str | None:
        """The codes that a QuantizeLinear would make anew; None where its coding is another one."""
        source = self._coded.get(node.input[0])
        if source is None or len(source.input) != 3 or len(node.input) != 3:
            return None
        same = all(map(self._same, source.input[1:], node.input[1:]))
        return str(source.input[0]) if same else None

    def _same(self, one: str, other: str) -> bool:
        """Whether two initializers have the same content."""
        tensors = [self._tensors.get(name) for name in (one, other)]
        if one == other or None in tensors:
            return one == other
        contents = [(tensor.data_type, list(tensor.dims), tensor.raw_data) for tensor in tensors if tensor]
        return bool(contents[0][2]) and contents[0] == contents[1]

    def _stay_last(self, node: Any) -> None:
        """Let the operator that was kept last work on values with the channels last, where all of them are there."""
        values = [name for name in node.input if name and name not in self._tensors]
        if not values or any(name not in self._last for name in values):
            return
        blocked = node.output[0]
        made = f"{blocked}~last"
        node.input[:] = [self._last.get(name, name) for name in node.input]
        node.output[0] = made
        self._last[blocked] = made
        back = type(node)(
            op_type="ReorderInput", domain=NCHWC_DOMAIN, input=[made], output=[blocked], name=f"{node.name}{BACK}"
        )
        back.attribute.add(name="channels_last", type=2, i=1)
        self.nodes.append(back)


def _converts(node: Any, operator: str) -> bool:
    """Whether a node converts between the blocked layout and one with the channels last."""
    return (node.domain, node.op_type) == (NCHWC_DOMAIN, operator) and integer_of(node, "channels_last") == 1


def _wanted_last(nodes: Sequence[Any]) -> set[str]:
    """Blocked values that something wants with the channels last, directly or behind what works in any layout."""
    wanted: set[str] = set()
    for node in reversed(nodes):
        if _converts(node, "ReorderOutput") or (node.op_type in _ELEMENTWISE and node.output[0] in wanted):
            wanted.update(node.input)
    return wanted


def _needed(nodes: Sequence[Any], outputs: Iterable[str]) -> list[Any]:
    """Nodes of which something is read in the end."""
    read, kept = set(outputs), list[Any]()
    for node in reversed(nodes):
        if not read.isdisjoint(node.output):
            kept.append(node)
            read.update(node.input)
    return kept[::-1]
