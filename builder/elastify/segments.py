"""The network as a small program: fixed pieces and units in topological order, with named values between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import fx

from builder.elastify.nodes import shape_of
from builder.elastify.trace import subgraph
from builder.elastify.units import Choice, choose_units

__all__ = ["Program", "Segment", "ValueName", "find_program", "find_segments", "value_names"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the network: reads named values, gives named values."""

    module: fx.GraphModule
    """Maps its inputs to one value, or to a tuple of them; shares its weights with the traced network."""

    elastic: bool
    """Whether it is a unit (one value in, one out) that can get alternatives; fixed otherwise."""

    inputs: tuple[str, ...]
    """Names of the values that it reads."""

    outputs: tuple[str, ...]
    """Names of the values that it gives."""

    in_shapes: tuple[tuple[int, ...], ...]
    """Shapes of its inputs without the batch dimension."""

    out_shapes: tuple[tuple[int, ...], ...]
    """Shapes of its outputs without the batch dimension."""

    reason: str
    """In one clause what kind of unit it is, or why it stays fixed."""

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of its first input."""
        return self.in_shapes[0]

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of its first output."""
        return self.out_shapes[0]

    @property
    def keeps_shape(self) -> bool:
        """Whether it can be skipped: a unit whose input and output have the same shape."""
        return self.elastic and self.in_shapes == self.out_shapes


@dataclass(frozen=True, slots=True)
class Program:
    """Segments in the order in which they run, and what stands at the two ends."""

    segments: tuple[Segment, ...]

    inputs: tuple[str, ...]
    """Names of the network's inputs, in order, as its forward names them."""

    input_shapes: tuple[tuple[int, ...], ...]
    """Their shapes without the batch dimension."""

    structure: Any
    """What the network returns: nested tuples, lists and dicts whose leaves are `ValueName`s, or constants."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of every named value without the batch dimension."""


class ValueName(str):
    """Stands for a value of the program inside `Program.structure`; other strings there are the network's own."""

    __slots__ = ()


def value_names(structure: Any) -> list[str]:
    """Names of the values in `Program.structure`, in order."""
    if isinstance(structure, ValueName):
        return [structure]
    if isinstance(structure, Mapping):
        return [name for item in structure.values() for name in value_names(item)]
    if isinstance(structure, (list, tuple)):
        return [name for item in structure for name in value_names(item)]
    return []


def find_segments(traced: fx.GraphModule) -> list[Segment]:
    """Split a graph from `trace` into fixed pieces and units, in order."""
    return list(find_program(traced).segments)


def find_program(traced: fx.GraphModule) -> Program:
    """Split a graph from `trace` into a program of fixed pieces and units."""
    output = next(node for node in traced.graph.nodes if node.op == "output")
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    segments = [_segment(traced, nodes, choice) for choice, nodes in _pieces(traced.graph, choose_units(traced))]
    names = {name for segment in segments for name in (*segment.inputs, *segment.outputs)}
    names |= {node.name for node in (*output.all_input_nodes, *placeholders)}
    shapes = {node.name: shape_of(node)[1:] for node in traced.graph.nodes if node.name in names}
    return Program(
        tuple(segments),
        tuple(node.name for node in placeholders),
        tuple(shape_of(node)[1:] for node in placeholders),
        fx.node.map_arg(output.args[0], lambda node: ValueName(node.name)),
        shapes,
    )


def _pieces(graph: fx.Graph, choices: Sequence[Choice]) -> Iterator[tuple[Choice | None, list[fx.Node]]]:
    """Units and the fixed runs between them; a unit stands where its exit stood."""
    exits = {choice.nodes[-1]: choice for choice in choices}
    inside = {node for choice in choices for node in choice.nodes}
    steps = [node for node in _order(graph) if node not in inside or node in exits]
    for choice, nodes in groupby(steps, key=exits.get):
        yield choice, list(choice.nodes if choice else nodes)


def _order(graph: fx.Graph) -> Iterator[fx.Node]:
    """Computed nodes in order; what is picked out of a tuple is picked at once, so that only tensors have names."""
    done: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op not in ("placeholder", "get_attr", "output") and node not in done:
            yield from _with_picks(node, done)


def _with_picks(node: fx.Node, done: set[fx.Node]) -> Iterator[fx.Node]:
    done.add(node)
    yield node
    if not shape_of(node):
        for user in node.users:
            if user not in done and user.op == "call_function" and set(user.all_input_nodes) == {node}:
                yield from _with_picks(user, done)


def _segment(traced: fx.GraphModule, nodes: list[fx.Node], choice: Choice | None) -> Segment:
    members = set(nodes)
    inputs = dict.fromkeys(
        source for node in nodes for source in node.all_input_nodes if source not in members and source.op != "get_attr"
    )
    outputs = [node for node in nodes if any(user not in members for user in node.users)]
    constants = dict.fromkeys(s for node in nodes for s in node.all_input_nodes if s.op == "get_attr")
    module = subgraph(traced, list(inputs), [*constants, *nodes], outputs)
    return Segment(
        module,
        choice is not None,
        tuple(node.name for node in inputs),
        tuple(node.name for node in outputs),
        tuple(shape_of(node)[1:] for node in inputs),
        tuple(shape_of(node)[1:] for node in outputs),
        choice.reason if choice else "between two units, or stem or head",
    )
