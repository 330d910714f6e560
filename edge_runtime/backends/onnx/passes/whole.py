"""The default subnet as a whole, beside the decisions: one `If` around all of them, so that it takes one and not each.

The full subnet is what a model starts with and comes back to. Its path without decisions is the same as that of a
session of its own: residual sums are made in place, and nothing is entered or left on the way. Its weights are the same
mapped file, so it costs the names of some hundred nodes; but for those of MatMul and Gemm between two decisions, which
onnxruntime packs into memory of its own, once for each place. What is in front of the first decision and behind the
last one stays outside and is not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edge_runtime.backends.onnx.passes.decisions import Decisions
from edge_runtime.backends.onnx.passes.inline import inline_gates
from edge_runtime.backends.onnx.passes.names import branches_of, copied
from edge_runtime.errors import BackendError

__all__ = ["reads", "rename_nodes", "run_default_whole"]

_WHOLE, _PARTS = "~whole", "~parts"


def run_default_whole(model: Any, decisions: Decisions) -> None:
    """Rewrite a ModelProto that `decide_outside` has changed, in place.

    It stays as it is where the default path has a decision of another kind, which the fed vector does not settle.
    """
    from onnx import helper

    part = _between(model.graph, f"{decisions.name}_bits")
    try:
        whole = _default_path(model, part, decisions)
    except BackendError:
        return
    parts = helper.make_graph(part.nodes, "parts", [], _outputs(model.graph, part.given, _PARTS))
    rename_nodes(parts.node, {name: f"{name}{_PARTS}" for name in part.given})
    _take_tensors(model.graph, parts, [*part.before, *part.after])
    names = f"{decisions.name}_whole", list(part.given)
    node = helper.make_node("If", [names[0]], names[1], names[0], then_branch=whole, else_branch=parts)
    model.graph.ClearField("node")
    model.graph.node.extend([*part.before, node, *part.after])


@dataclass(frozen=True, slots=True)
class _Part:
    """The nodes from the first decision to the last one, and those around them."""

    before: tuple[Any, ...]
    nodes: tuple[Any, ...]
    after: tuple[Any, ...]
    given: tuple[str, ...]
    """Names that are made in it and read behind it."""


def _between(graph: Any, first_name: str) -> _Part:
    nodes = [copied(node) for node in graph.node]
    first = next(number for number, node in enumerate(nodes) if node.name == first_name)
    last = max(number for number, node in enumerate(nodes) if node.op_type == "If")
    inner, after = nodes[first : last + 1], nodes[last + 1 :]
    wanted = {name for node in after for name in reads(node)} | {value.name for value in graph.output}
    given = tuple(name for node in inner for name in node.output if name in wanted)
    return _Part(tuple(nodes[:first]), tuple(inner), tuple(after), given)


def _default_path(model: Any, part: _Part, decisions: Decisions) -> Any:
    """The part without decisions as a graph of names that nothing else has."""
    from onnx import ModelProto

    flat = ModelProto(ir_version=model.ir_version)
    flat.graph.node.extend(part.nodes)
    flat.graph.initializer.extend(model.graph.initializer)
    flat.graph.output.extend(_outputs(model.graph, part.given, ""))
    bits = decisions.vector(decisions.default)[1:]
    graph = inline_gates(flat, {f"{decisions.name}_rest": bits}).graph
    graph.name = "whole"
    _end_without_copies(graph)
    made = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    renamed = {name: f"{name}{_WHOLE}" for name in made}
    for tensor in graph.initializer:
        tensor.name = renamed[tensor.name]
    for value in graph.output:
        value.name = renamed[value.name]
    for node in graph.node:
        node.name += _WHOLE
    rename_nodes(graph.node, renamed)
    return graph


def _end_without_copies(graph: Any) -> None:
    """Let the node whose result is only copied to an output give that output itself."""
    outputs = [value.name for value in graph.output]
    for node in [node for node in graph.node if node.op_type == "Identity" and node.output[0] in outputs]:
        source, name = node.input[0], node.output[0]
        if source not in outputs and any(source in other.output for other in graph.node):
            graph.node.remove(node)
            rename_nodes(graph.node, {source: name})  # a second output of the same value copies this one


def _take_tensors(graph: Any, branch: Any, outside: Sequence[Any]) -> None:
    """Move into a branch what only it reads: what comes from outside costs time on every level that hands it on."""
    read = {name for node in outside for name in reads(node)} | {value.name for value in graph.output}
    inside = {name for node in branch.node for name in reads(node)} - read
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    branch.initializer.extend(tensor for tensor in graph.initializer if tensor.name in inside)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _outputs(graph: Any, names: Sequence[str], suffix: str) -> list[Any]:
    """Declarations of outputs without shapes: of the graph's own element type where it is one, else float."""
    from onnx import TensorProto, ValueInfoProto

    known = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    made = [ValueInfoProto(name=f"{name}{suffix}") for name in names]
    for value, name in zip(made, names, strict=True):
        value.type.tensor_type.elem_type = known.get(name, TensorProto.FLOAT)
    return made


def rename_nodes(nodes: Sequence[Any], renamed: dict[str, str]) -> None:
    """Give values other names, in nodes and in all that is below them."""
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
        for branch in branches_of(node):
            rename_nodes(branch.node, renamed)
            for value in branch.output:
                value.name = renamed.get(value.name, value.name)


def reads(node: Any) -> Iterator[str]:
    """Every name that a node and those below it read, and what their branches give."""
    yield from node.input
    for branch in branches_of(node):
        yield from (value.name for value in branch.output)
        for inner in branch.node:
            yield from reads(inner)
