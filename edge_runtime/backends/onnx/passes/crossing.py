"""Activations stay in onnxruntime's blocked layout (NCHWc) where they cross the boundary of an `If`.

onnxruntime converts at every boundary, because a branch declares what it gives as NCHW: a ReorderOutput at the end of
one branch and a ReorderInput at the start of the next; and a residual Add or an activation after an `If` can no longer
be part of a convolution. Here each value is known in one or more layouts, and converted only where an operator needs
another one, whatever the graph looks like; a value whose layout cannot be changed is refused. An Add, Relu or Clip of
blocked values is folded into the convolution that makes one of them, as onnxruntime itself does inside one graph.
Convolutions of codes have the channels last: what is encoded for them, and what is decoded behind them, is converted
between that and the blocked layout in one step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edge_runtime.backends.onnx.passes.activations import Activations
from edge_runtime.backends.onnx.passes.conversions import NCHWC_DOMAIN, Conversions
from edge_runtime.backends.onnx.passes.last_channels import LastChannels
from edge_runtime.backends.onnx.passes.names import branches_of, graphs_of, integer_of
from edge_runtime.backends.onnx.passes.scope import CHANNELS, Scope, Shape, Value

__all__ = ["PLACELESS", "CrossingReport", "keep_blocked", "value_shapes"]

_SUM_INPUT = 3
"""Position of the value that a blocked Conv adds to its result before its activation."""

PLACELESS = frozenset({"Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Tanh", "Identity"})
"""Operators that work on each element alone, by their first input."""


@dataclass(slots=True)
class CrossingReport:
    """What the pass did."""

    dropped: int = 0
    """Conversions of the dump that are not needed any more."""

    added: int = 0
    """Conversions that were put where an operator needs the other layout."""

    folded: int = 0
    """Adds, Relus and Clips that became part of a convolution."""


def keep_blocked(model: Any, shapes: Mapping[str, Shape]) -> CrossingReport:
    """Rewrite a dumped ModelProto with unique value names in place; without blocked operators nothing changes.

    Args:
        model: As `make_names_unique` and `decide_outside` left it.
        shapes: What is known of the portable graph's values, by name: the dump itself does not say.

    Raises:
        BackendError: A layout that would have to be changed and cannot be.
    """
    report = CrossingReport()
    if any(node.domain == NCHWC_DOMAIN for node in _all_nodes(model.graph)):
        uses = Counter(name for node in _all_nodes(model.graph) for name in node.input)
        uses.update(value.name for graph in graphs_of(model.graph) for value in graph.output)
        tensors = (tensor for graph in graphs_of(model.graph) for tensor in graph.initializer)
        codes = LastChannels.found_in(_all_nodes(model.graph), uses)
        _Rewriter(report, dict(shapes), uses, Activations(tensors), codes).main(model.graph)
    for graph in graphs_of(model.graph):
        del graph.value_info[:]
    return report


def value_shapes(model: Any) -> dict[str, Shape]:
    """Shapes of all values of a portable ModelProto, branches included, as onnx infers them."""
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(model)
    graphs = list(graphs_of(inferred.graph))
    return {value.name: _dims(value) for graph in graphs for value in [*graph.value_info, *graph.input, *graph.output]}


class _Rewriter:
    def __init__(
        self,
        report: CrossingReport,
        shapes: dict[str, Shape],
        uses: Counter[str],
        activations: Activations,
        codes: LastChannels,
    ) -> None:
        self._report, self._shapes, self._uses = report, shapes, uses
        self._activations, self._codes, self._conversions = activations, codes, Conversions()
        self._blocked: set[str] = set()
        """Names that are blocked in the dump itself."""

    def main(self, graph: Any) -> None:
        """Rewrite the outermost graph; its outputs keep their names and are plain."""
        scope = self._rewritten(graph, None)
        for output in graph.output:
            value = scope.find(output.name)
            if value.blocked == output.name:  # the name is wanted for the plain value
                _rename(scope.nodes, output.name, f"{output.name}~blocked")
                scope.rename(output.name, f"{output.name}~blocked")
                value = scope.find(output.name)
            self._conversions.output_of(scope, value, output.name, blocked=False)
        graph.ClearField("node")
        graph.node.extend(scope.nodes)
        self._report.added = self._conversions.added

    def _rewritten(self, graph: Any, parent: Scope | None) -> Scope:
        scope = Scope(parent)
        for node in graph.node:
            self._node(node, scope)
        return scope

    def _node(self, node: Any, scope: Scope) -> None:
        converts = node.domain == NCHWC_DOMAIN and not integer_of(node, "channels_last")
        if converts and node.op_type == "ReorderInput":
            self._reorder_input(node, scope)
        elif converts and node.op_type == "ReorderOutput":
            self._report.dropped += 1
            value = scope.find(node.input[0])
            self._alias(node, replace(value, plain=None, channels=integer_of(node, "channels")), scope)
        elif node.op_type == "Identity":
            self._alias(node, scope.find(node.input[0]), scope)
        elif node.op_type == "If":
            self._decision(node, scope)
        elif node.domain == NCHWC_DOMAIN:
            self._blocked_operator(node, scope)
        elif self._follows(node, scope):
            pass
        elif any(name in self._blocked for name in node.input):
            self._blocked_operator(node, scope)  # onnxruntime itself left it on blocked values
        else:
            scope.emit(node, [self._conversions.of_name(scope, name, blocked=False) for name in node.input])

    def _follows(self, node: Any, scope: Scope) -> bool:
        """Whether a node could be kept in the layout of what it reads, or left out there."""
        followed = self._added(node, scope) or self._placeless(node, scope)
        return followed or self._codes.take_over(node, scope, self._conversions, self._shapes)

    def _reorder_input(self, node: Any, scope: Scope) -> None:
        value = scope.find(node.input[0])
        self._blocked.add(node.output[0])
        if value.blocked or value.last:
            self._report.dropped += 1
            self._alias(node, replace(value, blocked=self._conversions.of_value(scope, value, blocked=True)), scope)
        else:
            scope.emit(node, [str(value.plain)], blocked=True, channels=value.channels)

    def _alias(self, node: Any, value: Value, scope: Scope) -> None:
        """Drop a node; whoever reads its output reads what it read."""
        self._uses[node.output[0]] += self._uses[node.input[0]] - 1
        scope.define(node.output[0], value)

    def _decision(self, node: Any, scope: Scope) -> None:
        """Both branches, then the layout of what they give: blocked, but where all of them compute it plain."""
        branches = list(branches_of(node))
        inner = [self._rewritten(branch, scope) for branch in branches]
        values = [each.find(branch.output[0].name) for each, branch in zip(inner, branches, strict=True)]
        shape = _dims(branches[0].output[0])
        channels = shape[1] if len(shape) == 4 and isinstance(shape[1], int) and not shape[1] % CHANNELS else None
        blocked = channels is not None and any(value.blocked or value.last for value in values)
        for branch, each, value in zip(branches, inner, values, strict=True):
            known = replace(value, channels=channels) if blocked else value
            branch.output[0].name = self._conversions.output_of(each, known, None, blocked=blocked)
            branch.output[0].type.tensor_type.ClearField("shape")
            branch.ClearField("node")
            branch.node.extend(each.nodes)
        self._shapes[node.output[0]] = shape
        scope.emit(node, list(node.input), blocked=blocked, channels=channels)

    def _blocked_operator(self, node: Any, scope: Scope) -> None:
        inputs = [self._conversions.of_name(scope, name, blocked=name in self._blocked) for name in node.input]
        converts = node.op_type == "ReorderOutput"
        scope.emit(node, inputs, blocked=not converts)
        if not converts:
            self._blocked.update(node.output)

    def _added(self, node: Any, scope: Scope) -> bool:
        """An Add of two values of one shape that are not plain: folded into a blocked convolution, if it can be."""
        if node.op_type != "Add":
            return False
        values = [scope.find(name) for name in node.input]
        shapes = [self._shapes.get(name) for name in node.input]
        there = all(value.blocked or value.last for value in values)
        if not there or shapes[0] is None or shapes[0] != shapes[1]:
            return False
        if not any(value.blocked for value in values):
            scope.emit_last(node, [str(value.last) for value in values], values[0].channels)
            return True
        names = [self._conversions.of_value(scope, value, blocked=True) for value in values]
        channels = values[0].channels or values[1].channels
        for own, other in ((0, 1), (1, 0)):
            producer = self._foldable(node.input[own], values[own], scope)
            if producer is not None and len(producer.input) <= _SUM_INPUT:
                producer.input.extend([""] * (_SUM_INPUT - len(producer.input)))
                producer.input.append(names[other])
                self._take_over(producer, node.output[0], scope, channels)
                return True
        scope.emit(node, names, blocked=True, channels=channels)
        return True

    def _placeless(self, node: Any, scope: Scope) -> bool:
        """An operator on single elements reads whichever layout there is."""
        value = scope.find(node.input[0]) if node.input else Value()
        if node.op_type not in PLACELESS or not (value.blocked or value.last):
            return False
        if not value.blocked:
            others = [self._conversions.of_name(scope, name, blocked=False) for name in node.input[1:]]
            scope.emit_last(node, [str(value.last), *others], value.channels)
            return True
        if node.input[0] in self._blocked:
            self._blocked.update(node.output)
        producer, activation = self._foldable(node.input[0], value, scope), self._activations.of(node)
        if producer is not None and activation is not None:
            activation.give_to(producer)
            self._take_over(producer, node.output[0], scope, value.channels)
        else:
            inputs = [
                value.blocked,
                *(self._conversions.of_name(scope, name, blocked=False) for name in node.input[1:]),
            ]
            scope.emit(node, inputs, blocked=True, channels=value.channels)
        return True

    def _foldable(self, name: str, value: Value, scope: Scope) -> Any:
        """The blocked convolution of this graph that makes a value for one reader and has no activation yet."""
        producer = scope.producer(value.blocked)
        if producer is None or (producer.domain, producer.op_type) != (NCHWC_DOMAIN, "Conv"):
            return None
        plain = not any(attribute.name == "activation" for attribute in producer.attribute)
        return producer if plain and self._uses[name] == 1 else None

    def _take_over(self, producer: Any, name: str, scope: Scope, channels: int | None) -> None:
        """Let a convolution compute what its only reader did, where that reader stood."""
        self._report.folded += 1
        scope.nodes.remove(producer)
        producer.output[0] = name
        scope.nodes.append(producer)
        scope.define(name, Value(blocked=name, channels=channels))


def _all_nodes(graph: Any) -> Iterator[Any]:
    for each in graphs_of(graph):
        yield from each.node


def _rename(nodes: Iterable[Any], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
        for branch in branches_of(node):
            _rename(branch.node, old, new)


def _dims(value: Any) -> Shape:
    return tuple(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim)
