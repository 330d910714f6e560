"""From a module to a clean inference graph, and from parts of a graph to modules again."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Sequence

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from edge_runtime.errors import UsageError

__all__ = ["ACTIVATIONS", "is_activation", "is_add", "module_of", "shape_of", "subgraph", "trace"]

ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.SiLU)
_FUNCTIONAL_ACTIVATIONS = (
    torch.relu,
    torch.sigmoid,
    nn.functional.relu,
    nn.functional.relu6,
    nn.functional.hardswish,
    nn.functional.hardsigmoid,
    nn.functional.silu,
)
_METHOD_ACTIVATIONS = ("relu", "sigmoid")
_PLAIN_METHODS = {"relu_": "relu", "sigmoid_": "sigmoid", "add_": "add", "mul_": "mul"}
_PLAIN_FUNCTIONS = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    torch.relu_: torch.relu,
    torch.sigmoid_: torch.sigmoid,
}
_INERT = (nn.Identity, nn.Dropout, nn.Dropout2d)


def trace(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """Trace `model` in eval mode and record the shape of every value for `example` [N, C, H, W].

    The model itself is copied and left as it was. Identity and dropout are removed: they do nothing at inference.
    In-place operations become plain ones with the same result, so that a value of the graph never changes later.

    Raises:
        UsageError: the model cannot be traced, or takes more than one input.
    """
    model = copy.deepcopy(model).eval()
    try:
        traced = fx.symbolic_trace(model)
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} cannot be traced: {error}",
            hint="torch.fx cannot follow control flow that depends on values; move it out of forward",
        ) from error
    if sum(node.op == "placeholder" for node in traced.graph.nodes) != 1:
        raise UsageError(f"{type(model).__name__} takes several inputs", hint="wrap it in a module with one input")
    _drop_inert(traced)
    _make_pure(traced)
    with torch.no_grad():
        ShapeProp(traced).propagate(example)
    return traced


def _drop_inert(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if isinstance(module_of(traced, node), _INERT) or node.target is nn.functional.dropout:
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _make_pure(traced: fx.GraphModule) -> None:
    """Replace operations that write into their input; who reads that input afterwards reads the result instead."""
    writing = {node for node in traced.graph.nodes if _writes_input(traced, node)}
    seen: set[fx.Node] = set()
    for node in traced.graph.nodes:
        seen.add(node)
        if node in writing:
            node.all_input_nodes[0].replace_all_uses_with(node, delete_user_cb=lambda user: user not in seen)
            _turn_plain(node)
    for module in traced.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    traced.recompile()


def _writes_input(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _PLAIN_METHODS
    functional = node.op == "call_function" and node.target in _FUNCTIONAL_ACTIVATIONS
    asked = node.kwargs.get("inplace", len(node.args) > 1 and node.args[1]) if functional else False
    return bool(asked) or node.target in _PLAIN_FUNCTIONS or getattr(module_of(traced, node), "inplace", False)


def _turn_plain(node: fx.Node) -> None:
    if node.op == "call_method":
        node.target = _PLAIN_METHODS[str(node.target)]
    elif node.target in _PLAIN_FUNCTIONS:
        node.target = _PLAIN_FUNCTIONS[node.target]
    elif node.op == "call_function":  # a functional activation with its flag
        node.args, node.kwargs = tuple(node.all_input_nodes), {}


def module_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that `node` calls, None for functions and methods."""
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_activation(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is an element-wise non-linearity of one input."""
    if node.op == "call_method":
        return node.target in _METHOD_ACTIVATIONS
    return node.target in _FUNCTIONAL_ACTIVATIONS or isinstance(module_of(graph_module, node), ACTIVATIONS)


def is_add(node: fx.Node) -> bool:
    """Whether `node` adds two values of the graph."""
    called = node.target in (operator.add, torch.add) or (node.op == "call_method" and node.target == "add")
    return called and len(node.all_input_nodes) == 2


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape that shape propagation saw at `node`, batch included; empty where it is not a tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else ()


def subgraph(source: fx.GraphModule, entry: fx.Node, nodes: Sequence[fx.Node], output: fx.Node) -> fx.GraphModule:
    """The nodes between `entry` (exclusive) and `output` as a module of one input and one output.

    Submodules are shared with `source`, not copied, so that the result computes with the very same weights.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {entry: graph.placeholder("x")}
    copies[entry].meta = dict(entry.meta)
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda old: copies[old])
        copies[node].meta = dict(node.meta)
    graph.output(copies[output])
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
