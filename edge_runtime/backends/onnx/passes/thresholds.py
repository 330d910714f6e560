"""What the conditions of a gated graph test: each is traced back to one entry of the gate vector and a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_runtime.backends.onnx.passes.names import branches_of

__all__ = ["TEST_OPERATORS", "Threshold", "Thresholds"]

TEST_OPERATORS = frozenset({"Gather", "Squeeze", "Split", "Equal", "Less"})
"""What takes the gate vector apart and compares its entries."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A condition that is ``gates[entry] < bound``."""

    entry: int
    bound: int


class Thresholds:
    """Reads the conditions of a ModelProto's graph and its branches; value names have to be unique."""

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

    def of(self, condition: str) -> Threshold | None:
        """The test behind a condition that is ``gate < bound`` or ``gate == 0``; None where it is of another kind."""
        node, _ = self._makers.get(condition, (None, 0))
        if node is None or node.op_type not in ("Less", "Equal"):
            return None
        entry, bounds = self._entry(node.input[0]), self._constants.get(node.input[1], ())
        if entry is None or len(bounds) != 1 or (node.op_type == "Equal" and bounds != (0,)):
            return None
        return Threshold(entry, 1 if node.op_type == "Equal" else bounds[0])  # gates are never negative

    def only_tests(self, node: Any) -> bool:
        """Whether a node does nothing but take the gate vector apart or compare its entries."""
        if node.op_type in ("Less", "Equal"):
            return all(self.of(name) is not None for name in node.output)
        return node.op_type in TEST_OPERATORS and all(self._entry(name) is not None for name in node.output)

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
