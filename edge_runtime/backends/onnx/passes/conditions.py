"""All decisions of a graph in one comparison, made once at its start.

The exporter tests each gate where it is needed: one entry is taken out of the gate vector, and one comparison is made
for every level of a decision. Each of these operators takes microseconds to start and nanoseconds to run, together half
as long as the `If`s themselves. Here all entries are gathered at once, compared with all bounds at once, and split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_runtime.backends.onnx.passes.names import all_names, branches_of

__all__ = ["decide_at_once"]

_TESTS = frozenset({"Gather", "Squeeze", "Split", "Equal", "Less"})


def decide_at_once(model: Any, gate_input: str) -> int:
    """Rewrite a ModelProto with unique names in place.

    Args:
        model: Gated; every decision that is ``gate < bound`` or ``gate == 0`` is taken along, others stay as they are.
        gate_input: Name of its int64 gate vector.

    Returns:
        How many decisions were taken along.
    """
    from onnx import helper, numpy_helper

    tests = _Tests(model.graph, gate_input)
    found = [(node, test) for node in _ifs(model.graph) if (test := tests.of(node.input[0])) is not None]
    if not found:
        return 0
    prefix = _free_prefix(model.graph)
    names = [f"{prefix}_{number}" for number in range(len(found))]
    for (node, _), name in zip(found, names, strict=True):
        node.input[0] = name
    entries = np.array([test.entry for _, test in found], np.int64)
    bounds = np.array([test.bound for _, test in found], np.int64)
    first = [
        helper.make_node("Gather", [gate_input, f"{prefix}_entries"], [f"{prefix}_gates"], f"{prefix}_gather", axis=0),
        helper.make_node("Less", [f"{prefix}_gates", f"{prefix}_bounds"], [f"{prefix}_all"], f"{prefix}_less"),
        helper.make_node("Split", [f"{prefix}_all"], names, f"{prefix}_split", axis=0),
    ]
    rest = list(model.graph.node)
    model.graph.ClearField("node")
    model.graph.node.extend([*first, *rest])
    model.graph.initializer.append(numpy_helper.from_array(entries, f"{prefix}_entries"))
    model.graph.initializer.append(numpy_helper.from_array(bounds, f"{prefix}_bounds"))
    while _drop_unused(model.graph):
        pass
    return len(found)


@dataclass(frozen=True, slots=True)
class _Test:
    """A condition that is ``gates[entry] < bound``."""

    entry: int
    bound: int


class _Tests:
    """What the scalars of a graph and of its branches are, traced back to the gate vector."""

    def __init__(self, graph: Any, gate_input: str) -> None:
        self._gate_input = gate_input
        self._makers: dict[str, tuple[Any, int]] = {}
        self._constants: dict[str, tuple[int, ...]] = {}
        self._collect(graph)

    def _collect(self, graph: Any) -> None:
        from onnx import numpy_helper

        for tensor in graph.initializer:
            if tensor.data_type == tensor.INT64 and tensor.data_location != tensor.EXTERNAL:
                self._constants[tensor.name] = tuple(numpy_helper.to_array(tensor).reshape(-1).tolist())
        for node in graph.node:
            self._makers.update({name: (node, index) for index, name in enumerate(node.output)})
            for branch in branches_of(node):
                self._collect(branch)

    def of(self, condition: str) -> _Test | None:
        """The test behind a condition; None where it is of another kind."""
        node, _ = self._makers.get(condition, (None, 0))
        if node is None or node.op_type not in ("Less", "Equal"):
            return None
        entry, bounds = self._entry(node.input[0]), self._constants.get(node.input[1], ())
        if entry is None or len(bounds) != 1 or (node.op_type == "Equal" and bounds != (0,)):
            return None
        return _Test(entry, 1 if node.op_type == "Equal" else bounds[0])  # gates are never negative

    def _entry(self, name: str) -> int | None:
        """Which entry of the gate vector a value is."""
        node, index = self._makers.get(name, (None, 0))
        if node is None:
            return None
        if node.op_type == "Squeeze":
            return self._entry(node.input[0])
        if node.input[0] != self._gate_input:
            return None
        if node.op_type == "Split":
            sizes = self._constants.get(node.input[1], ()) if len(node.input) > 1 else (1,) * len(node.output)
            return index if set(sizes) == {1} else None
        places = self._constants.get(node.input[1], ()) if node.op_type == "Gather" else ()
        return places[0] if len(places) == 1 else None


def _ifs(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        if node.op_type == "If":
            yield node
        for branch in branches_of(node):
            yield from _ifs(branch)


def _free_prefix(graph: Any) -> str:
    """Something that no name in the graph begins with."""
    prefix, names = "decide", {tensor.name for tensor in graph.initializer} | set(all_names(graph))
    names |= {value.name for value in graph.input}
    while any(name.startswith(prefix) for name in names):
        prefix += "~"
    return prefix


def _drop_unused(graph: Any) -> bool:
    """Take out tests whose result nothing reads any more; whether there were any."""
    used: set[str] = set()
    graphs: list[Any] = []

    def walk(current: Any) -> None:
        graphs.append(current)
        used.update(value.name for value in current.output)
        for node in current.node:
            used.update(node.input)
            for branch in branches_of(node):
                walk(branch)

    walk(graph)
    dropped = False
    for current in graphs:
        kept = [node for node in current.node if node.op_type not in _TESTS or used & set(node.output)]
        if len(kept) < len(current.node):
            dropped = True
            current.ClearField("node")
            current.node.extend(kept)
    return dropped
