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
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

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
        UsageError: neither torch.fx nor torch.export gives a graph that computes what the model computes, also on other
            values than those of `example`; or it fails on `example`.
    """
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    name = type(model).__name__
    # Other values than the example's show what was taken for a number of the graph and is one of the data.
    given = (
        examples,
        tuple(value.flip(-1) * 0.5 if value.is_floating_point() else value.flip(-1) for value in examples),
    )
    try:
        wanted = [_outputs(_plain_copy(model), values) for values in given]
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{name} cannot run on the example: {_first_line(error)}", hint="give inputs as its forward takes them"
        ) from error
    reasons: list[str] = []
    for follow in (_trace_fx, trace_exported):
        try:
            traced = _cleaned(follow(_plain_copy(model), examples), examples)
            if all(_agree(_outputs(traced, values), found) for values, found in zip(given, wanted, strict=True)):
                return traced
            reasons.append("the graph does not compute what the model computes")
        except Exception as error:
            reasons.append(_first_line(error))
    raise UsageError(
        f"{name} cannot be traced: {reasons[0]}; torch.export: {reasons[1]}",
        hint="move control flow and numbers that depend on values out of forward",
    )


def _plain_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode. Raises `UsageError` where it cannot be copied, or its weights are computed."""
    # Taking them out of a copy would take them out of the original as well: both share the class that computes them.
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise UsageError(
            f"{type(model).__name__} has parametrized weights",
            hint="torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') leaves their values",
        )
    try:
        return copy.deepcopy(model).eval()
    except RuntimeError as error:
        raise UsageError(
            f"{type(model).__name__} cannot be copied: {_first_line(error)}",
            hint="torch.nn.utils.weight_norm makes such modules: call remove_weight_norm on them first",
        ) from error


def _cleaned(traced: fx.GraphModule, examples: tuple[Tensor, ...]) -> fx.GraphModule:
    drop_inert(traced)
    make_pure(traced)
    settle_shapes(traced, examples)
    return traced


def _outputs(model: nn.Module, values: Sequence[Tensor]) -> list[Tensor]:
    """Every tensor that a model gives; it may write into its inputs."""
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(model(*(value.clone() for value in values))) if isinstance(leaf, Tensor)]


def _agree(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    def close(one: Tensor, other: Tensor) -> bool:
        largest = max(1.0, other.abs().max().item())
        return one.shape == other.shape and torch.allclose(one, other, atol=1e-5 * largest, equal_nan=True)

    return len(found) == len(wanted) and all(map(close, found, wanted))


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
