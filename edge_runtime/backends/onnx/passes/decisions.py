"""All decisions of a graph are made before it runs: one bool vector is fed, and each `If` reads an element of it.

The exporter takes one entry out of the gate vector for each decision and compares it on every level of a tree that
tests the original first. Each of these operators takes microseconds to start and nanoseconds to run, and each level is
a graph of its own to enter. Here the levels of a decision become one balanced tree over its alternatives, and level k
of it reads bit k of the chosen alternative's place, which the table of `Decisions` knows for each gate value. The
original has no need to come first, because the whole default path stands beside them (`whole.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_runtime.backends.base import Array, DamagedError
from edge_runtime.backends.onnx.passes.names import all_names, branches_of, copied, graphs_of
from edge_runtime.backends.onnx.passes.thresholds import TEST_OPERATORS, Thresholds

__all__ = ["Decisions", "decide_outside"]

_METADATA = "nnf-edge decisions"


@dataclass(frozen=True, slots=True)
class Decisions:
    """How the fed vector is made of a gate vector: its first element says that the default runs as a whole."""

    name: str
    """Of the graph input: bool [1 + number of bits]."""

    entries: tuple[int, ...]
    """For each bit the entry of the gate vector that it looks at."""

    rows: tuple[tuple[bool, ...], ...]
    """For each bit its value by that entry's value; the last one holds for all larger values."""

    default: tuple[int, ...]
    """The gate vector that runs as a whole; so does every other one of the same decisions (modules may differ)."""

    def __post_init__(self) -> None:
        if len(self.entries) != len(self.rows) or not all(self.rows):
            raise DamagedError(f"{len(self.entries)} decisions have {len(self.rows)} rows")
        if any(not 0 <= entry < len(self.default) for entry in self.entries):
            raise DamagedError(f"a decision reads no entry of {len(self.default)}")

    def vector(self, gates: Sequence[int], *, whole: bool = True) -> Array:
        """What is fed for a gate vector; without `whole` the default runs decision by decision as all others do."""
        bits = self._bits(gates)
        return np.array([whole and bits == self._bits(self.default), *bits], np.bool_)

    def _bits(self, gates: Sequence[int]) -> tuple[bool, ...]:
        pairs = zip(self.entries, self.rows, strict=True)
        return tuple(row[min(gates[entry], len(row) - 1)] for entry, row in pairs)

    def put_into(self, model: Any) -> None:
        """Write them into a ModelProto's metadata: the graph cannot be run without them."""
        value = {"name": self.name, "entries": self.entries, "rows": self.rows, "default": self.default}
        model.metadata_props.add(key=_METADATA, value=json.dumps(value))

    @classmethod
    def found_in(cls, metadata: dict[str, str]) -> Decisions | None:
        """Those that `put_into` wrote; None where there are none. Raises `DamagedError` where they are not."""
        if _METADATA not in metadata:
            return None
        try:
            value = json.loads(metadata[_METADATA])
            rows = tuple(tuple(bool(bit) for bit in row) for row in value["rows"])
            return cls(str(value["name"]), tuple(map(int, value["entries"])), rows, tuple(map(int, value["default"])))
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError("the prepared graph's decisions cannot be read") from error


def decide_outside(model: Any, gate_input: str, default: Sequence[int]) -> Decisions | None:
    """Rewrite a ModelProto with unique names in place: `If`s read elements of a new input, in balanced trees.

    Args:
        model: Gated; every decision that is ``gate < bound`` or ``gate == 0`` is taken along, others stay as they are.
        gate_input: Name of its int64 gate vector; it stays an input only where something still reads it.
        default: The gate vector that may run as a whole.

    Returns:
        What is fed instead; None where the graph has no such decision, and stays as it is.
    """
    trees = _Trees(model.graph, gate_input)
    trees.rebuild(model.graph)
    if not trees.entries:
        return None
    decisions = Decisions(trees.prefix, tuple(trees.entries), tuple(trees.rows), tuple(default))
    _feed(model.graph, decisions, trees.names)
    while _drop_unused(model.graph):
        pass
    if gate_input not in _read(model.graph):
        kept = [value for value in model.graph.input if value.name != gate_input]
        del model.graph.input[:]
        model.graph.input.extend(kept)
    decisions.put_into(model)
    return decisions


@dataclass(frozen=True, slots=True)
class _Leaf:
    """An alternative, or several that are told apart further in."""

    low: int
    """Smallest gate value that it is for; it holds up to the next leaf's."""

    graph: Any


class _Trees:
    """Turns decisions into balanced trees, and collects the bits that those read."""

    def __init__(self, graph: Any, gate_input: str) -> None:
        self._thresholds = Thresholds(graph, gate_input)
        self.prefix = _free_prefix(graph)
        self.entries: list[int] = []
        self.rows: list[tuple[bool, ...]] = []
        self.names: list[str] = []

    def rebuild(self, graph: Any) -> None:
        """All decisions of a graph and of the branches in it."""
        for node in graph.node:
            test = self._thresholds.of(node.input[0]) if node.op_type == "If" else None
            leaves = sorted(self._leaves(node, test.entry, 0, None), key=lambda leaf: leaf.low) if test else []
            for branch in [leaf.graph for leaf in leaves] or branches_of(node):
                self.rebuild(branch)
            if test and len(leaves) > 1:
                self._decide(node, leaves, test.entry)

    def _leaves(self, node: Any, entry: int, low: int, high: int | None) -> Iterator[_Leaf]:
        """What the levels of one decision choose from, each with the values of the gate that lead to it."""
        test = self._thresholds.of(node.input[0])
        assert test is not None
        by_name = {attribute.name: attribute.g for attribute in node.attribute}
        middle = test.bound if high is None else min(test.bound, high)
        sides = ((by_name["then_branch"], low, middle), (by_name["else_branch"], max(low, test.bound), high))
        for branch, first, last in sides:
            if last is not None and first >= last:
                continue  # no value of the gate leads there
            inner = self._only_decision(branch, entry)
            if inner is None:
                yield _Leaf(first, branch)
            else:
                yield from self._leaves(inner, entry, first, last)

    def _only_decision(self, branch: Any, entry: int) -> Any:
        """The `If` that is all there is in a branch, if it looks at the same entry."""
        nodes = [node for node in branch.node if not self._thresholds.only_tests(node)]
        if len(nodes) != 1 or nodes[0].op_type != "If" or list(nodes[0].output) != [branch.output[0].name]:
            return None
        if {tensor.name for tensor in branch.initializer} & self._read_as_data(branch):
            return None
        test = self._thresholds.of(nodes[0].input[0])
        return nodes[0] if test is not None and test.entry == entry and len(branch.output) == 1 else None

    def _read_as_data(self, graph: Any) -> set[str]:
        """What nodes of a graph and those below it read, but for those that test gates."""
        nodes = [node for each in graphs_of(graph) for node in each.node]
        return {name for node in nodes if not self._thresholds.only_tests(node) for name in node.input}

    def _decide(self, node: Any, leaves: Sequence[_Leaf], entry: int) -> None:
        """Let a node choose among two leaves or more."""
        codes = dict(_codes([leaf.low for leaf in leaves], ()))
        bits = [self._bit(entry, leaves, codes, level) for level in range(max(map(len, codes.values())))]
        node.input[0] = bits[0]
        then, other = self._halves(leaves, bits[1:], node)
        copies = {"then_branch": copied(then), "else_branch": copied(other)}
        for attribute in node.attribute:
            attribute.g.CopyFrom(copies[attribute.name])

    def _halves(self, leaves: Sequence[_Leaf], bits: Sequence[str], node: Any) -> tuple[Any, Any]:
        half = len(leaves) // 2
        return self._tree(leaves[:half], bits, node), self._tree(leaves[half:], bits, node)

    def _tree(self, leaves: Sequence[_Leaf], bits: Sequence[str], node: Any) -> Any:
        """A graph that chooses among some leaves."""
        from onnx import helper

        if len(leaves) == 1:
            return leaves[0].graph
        then, other = self._halves(leaves, bits[1:], node)
        name = f"{self.prefix}_{node.name}_{leaves[0].low}"
        inner = helper.make_node("If", [bits[0]], [f"{name}.out"], name, then_branch=then, else_branch=other)
        output = copied(leaves[0].graph.output[0])
        output.name = f"{name}.out"
        return helper.make_graph([inner], f"{name}.graph", [], [output])

    def _bit(self, entry: int, leaves: Sequence[_Leaf], codes: dict[int, tuple[bool, ...]], level: int) -> str:
        """The name of the value that is bit `level` of the place of the chosen leaf."""
        lows = [leaf.low for leaf in leaves]
        placed = (max((low for low in lows if low <= value), default=lows[0]) for value in range(lows[-1] + 1))
        row = tuple(level < len(codes[low]) and codes[low][level] for low in placed)
        key = (entry, row)
        known = list(zip(self.entries, self.rows, strict=True))
        if key in known:
            return self.names[known.index(key)]
        self.entries.append(entry)
        self.rows.append(row)
        self.names.append(f"{self.prefix}_{len(self.names)}")
        return self.names[-1]


def _codes(lows: Sequence[int], path: tuple[bool, ...]) -> Iterator[tuple[int, tuple[bool, ...]]]:
    """For each leaf the way to it in the balanced tree: True is the first half."""
    if len(lows) == 1:
        yield lows[0], path
        return
    half = len(lows) // 2
    yield from _codes(lows[:half], (*path, True))
    yield from _codes(lows[half:], (*path, False))


def _feed(graph: Any, decisions: Decisions, names: Sequence[str]) -> None:
    """Declare the fed vector and take it apart in two steps, the second where the first decision is made."""
    from onnx import TensorProto, helper, numpy_helper

    name = decisions.name
    sizes = numpy_helper.from_array(np.array([1, len(names)], np.int64), f"{name}_sizes")
    ones = numpy_helper.from_array(np.ones(len(names), np.int64), f"{name}_ones")
    first = helper.make_node("Split", [name, sizes.name], [f"{name}_whole", f"{name}_rest"], f"{name}_first", axis=0)
    rest = helper.make_node("Split", [f"{name}_rest", ones.name], list(names), f"{name}_bits", axis=0)
    nodes = list(graph.node)
    at = next(number for number, node in enumerate(nodes) if node.op_type == "If")
    graph.ClearField("node")
    graph.node.extend([first, *nodes[:at], rest, *nodes[at:]])
    graph.initializer.extend([sizes, ones])
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.BOOL, [1 + len(names)]))


def _free_prefix(graph: Any) -> str:
    """Something that no name in the graph begins with."""
    prefix, names = "decide", {tensor.name for tensor in graph.initializer} | set(all_names(graph))
    names |= {value.name for value in graph.input}
    while any(name.startswith(prefix) for name in names):
        prefix += "~"
    return prefix


def _read(graph: Any) -> set[str]:
    """Every name that something in a graph or its branches reads."""
    nodes = [node for each in graphs_of(graph) for node in each.node]
    return {name for node in nodes for name in node.input} | {v.name for each in graphs_of(graph) for v in each.output}


def _drop_unused(graph: Any) -> bool:
    """Take out tests whose result nothing reads any more; whether there were any."""
    used, dropped = _read(graph), False
    for each in list(graphs_of(graph)):
        kept = [node for node in each.node if node.op_type not in TEST_OPERATORS or used & set(node.output)]
        if len(kept) < len(each.node):
            dropped = True
            each.ClearField("node")
            each.node.extend(kept)
    return dropped
