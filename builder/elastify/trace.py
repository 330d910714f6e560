"""From a module to a clean inference graph, and from parts of a graph to modules again.

torch.fx is tried first, because it keeps the developer's own modules; `exported` (torch.export) where fx cannot follow.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx, nn

from builder.elastify.exported import trace_exported
from builder.elastify.nodes import is_activation, is_add, module_of, shape_of
from builder.elastify.purify import drop_inert, make_pure
from builder.elastify.static_shapes import settle_shapes
from edge_runtime.errors import UsageError

__all__ = ["Inputs", "is_activation", "is_add", "module_of", "shape_of", "subgraph", "trace"]

Inputs = Tensor | Sequence[Tensor]
"""A network's one input, or all of them in order; each has the batch first."""


def trace(model: nn.Module, example: Inputs) -> fx.GraphModule:
    """Trace `model` in eval mode and record the shape of every value for `example` (each input [N, ...]).

    The model itself is copied and left as it was. Identity and dropout are removed: they do nothing at inference.
    In-place operations become plain ones with the same result, so that a value of the graph never changes later.
    Sizes read from shapes become numbers (the batch stays free): the graph is for the example's resolution.

    Raises:
        UsageError: neither torch.fx nor torch.export can follow the model, or it fails on `example`.
    """
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    model = copy.deepcopy(model).eval()
    name = type(model).__name__
    try:
        with torch.no_grad():
            model(*examples)
    except Exception as error:
        raise UsageError(
            f"{name} cannot run on the example: {_first_line(error)}", hint="give inputs as its forward takes them"
        ) from error
    traced = _followed(model, examples, name)
    drop_inert(traced)
    make_pure(traced)
    settle_shapes(traced, examples)
    return traced


def _followed(model: nn.Module, examples: tuple[Tensor, ...], name: str) -> fx.GraphModule:
    try:
        return _trace_fx(model, examples)
    except Exception as error:
        reason = _first_line(error)
    try:
        return trace_exported(model, examples)
    except Exception as error:
        raise UsageError(
            f"{name} cannot be traced: {reason}; torch.export: {_first_line(error)}",
            hint="move control flow that depends on values out of forward",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _trace_fx(model: nn.Module, examples: tuple[Tensor, ...]) -> fx.GraphModule:
    """Trace with torch.fx; arguments of forward beyond the examples keep their default value."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY, p.POSITIONAL_ONLY)]
    defaults = {p.name: p.default for p in named[len(examples) :] if p.default is not p.empty}
    traced = fx.symbolic_trace(model, concrete_args=defaults or None)
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    for extra in placeholders[len(examples) :]:
        for user in list(extra.users):  # checks that the argument is the default
            traced.graph.erase_node(user)
        traced.graph.erase_node(extra)
    traced.recompile()
    return traced


def subgraph(
    source: fx.GraphModule, inputs: Sequence[fx.Node], nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> fx.GraphModule:
    """`nodes` (in order, constants included) as a module that maps `inputs` to `outputs`: one value, or a tuple.

    Submodules are shared with `source`, not copied, so that the result computes with the very same weights.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for number, node in enumerate(inputs):
        copies[node] = graph.placeholder("x" if len(inputs) == 1 else f"x{number}")
        copies[node].meta = dict(node.meta)
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda old: copies[old])
        copies[node].meta = dict(node.meta)
    graph.output(copies[outputs[0]] if len(outputs) == 1 else tuple(copies[node] for node in outputs))
    root = nn.Module()
    for name in _targets(nodes):
        _attach(root, name, source)
    return fx.GraphModule(root, graph)


def _targets(nodes: Iterable[fx.Node]) -> list[str]:
    return sorted({str(node.target) for node in nodes if node.op in ("call_module", "get_attr")})


def _attach(root: nn.Module, name: str, source: fx.GraphModule) -> None:
    *path, leaf = name.split(".")
    parent = root
    for part in path:
        if not hasattr(parent, part):
            parent.add_module(part, nn.Module())
        parent = getattr(parent, part)
    value = operator.attrgetter(name)(source)
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        parent.register_buffer(leaf, value)
    else:
        setattr(parent, leaf, value)
