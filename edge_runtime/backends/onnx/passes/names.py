"""Every value name once in the whole model.

At full optimisation onnxruntime repeats the names of the values that it adds (``reorder_token_0``) in different
branches, and then refuses its own dump. A repeated name gets a suffix, in the graph where it is and in those below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["all_names", "branches_of", "copied", "decisions_of", "graphs_of", "integer_of", "make_names_unique"]

_POINT = re.compile(r"(?:group|window)_(\d{1,4})")


def make_names_unique(model: Any) -> None:
    """Rename repeated values and nodes of a ModelProto in place; inputs, outputs and the first of each name stay."""
    _Names(model.graph).rename(model.graph, {})


def branches_of(node: Any) -> Iterator[Any]:
    """The GraphProtos inside a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g


def graphs_of(graph: Any) -> Iterator[Any]:
    """A graph and all those below it."""
    yield graph
    for node in graph.node:
        for branch in branches_of(node):
            yield from graphs_of(branch)


def copied(message: Any) -> Any:
    """A protobuf message of its own with the same content."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def decisions_of(model: Any) -> dict[str, int]:
    """The group that each node inside a decision belongs to, by node name: that of the innermost decision point."""
    found: dict[str, int] = {}

    def walk(graph: Any, group: int | None) -> None:
        for node in graph.node:
            match = _POINT.fullmatch(node.name) if node.op_type == "If" else None
            inner = int(match[1]) if match else group
            if inner is not None:
                found[node.name] = inner
            for branch in branches_of(node):
                walk(branch, inner)

    walk(model.graph, None)
    return found


def integer_of(node: Any, attribute_name: str) -> int:
    """An integer attribute of a node; 0, the default of all that are asked for here, where it is not set."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == attribute_name), 0)


class _Names:
    def __init__(self, graph: Any) -> None:
        self._outermost = graph
        self._seen: set[str] = set(all_names(graph))
        self._outputs = {value.name for value in graph.output}
        self._values: set[str] = {value.name for value in graph.input} | self._outputs
        self._nodes: set[str] = set()

    def rename(self, graph: Any, inherited: dict[str, str]) -> None:
        """One graph and, where a node is reached, those below it: they see what was renamed until there."""
        renamed = dict(inherited)
        for tensor in graph.initializer:
            tensor.name = self._claim(tensor.name, renamed)
        for node in graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = renamed.get(name, name)
            for branch in branches_of(node):
                self.rename(branch, renamed)
            for index, name in enumerate(node.output):
                if name and not (graph is self._outermost and name in self._outputs):
                    node.output[index] = self._claim(name, renamed)
            node.name = self._fresh(node.name, self._nodes)
        for value in [*graph.output, *graph.value_info]:
            value.name = renamed.get(value.name, value.name)

    def _claim(self, name: str, renamed: dict[str, str]) -> str:
        fresh = self._fresh(name, self._values)
        renamed[name] = fresh
        return fresh

    def _fresh(self, wanted: str, taken: set[str]) -> str:
        name, count = wanted, 1
        while name in taken or (count > 1 and name in self._seen):
            name, count = f"{wanted}~{count}", count + 1
        taken.add(name)
        return name


def all_names(graph: Any) -> Iterator[str]:
    """Names of the nodes of a graph and its branches and of what they give; some are there more than once."""
    for node in graph.node:
        yield node.name
        yield from node.output
        for branch in branches_of(node):
            yield from all_names(branch)
    yield from (tensor.name for tensor in graph.initializer)
