"""Remove what does nothing at inference, and turn operations that write into their input into plain ones."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from builder.elastify.nodes import module_of, op_name

__all__ = ["drop_inert", "make_pure"]

_INERT_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)
_INERT_FUNCTIONS = (nn.functional.dropout, nn.functional.dropout2d, torch.dropout)
_PLAIN_FUNCTIONS = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    operator.isub: operator.sub,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
    torch.sigmoid_: torch.sigmoid,
    torch.clamp_: torch.clamp,
}
_PLAIN_METHODS = {f"{name}_": name for name in ("relu", "sigmoid", "add", "mul", "sub", "div", "clamp", "tanh")}


def drop_inert(traced: fx.GraphModule) -> None:
    """Remove identities and dropout."""
    for node in list(traced.graph.nodes):
        if isinstance(module_of(traced, node), _INERT_MODULES) or node.target in _INERT_FUNCTIONS:
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)
    traced.recompile()


def make_pure(traced: fx.GraphModule) -> None:
    """Replace operations that write into their input; who reads that input afterwards reads the result instead.

    What nobody reads is removed then, and not before: what writes into its input need not be read itself.
    """
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
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _writes_input(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _PLAIN_METHODS
    if node.op == "call_module":
        return bool(getattr(module_of(traced, node), "inplace", False))
    return node.target in _PLAIN_FUNCTIONS or bool(_inplace_flag(traced, node))


def _inplace_flag(traced: fx.GraphModule, node: fx.Node) -> object:
    """The flag of a functional activation, given by name or in the second place."""
    flagged = node.op == "call_function" and op_name(traced, node) in (
        "relu",
        "relu6",
        "hardswish",
        "hardsigmoid",
        "silu",
    )
    second = flagged and len(node.args) > 1 and node.args[1]
    return node.kwargs.get("inplace", second) if node.op == "call_function" else False


def _turn_plain(node: fx.Node) -> None:
    if node.op == "call_method":
        node.target = _PLAIN_METHODS[str(node.target)]
    elif node.target in _PLAIN_FUNCTIONS:
        node.target = _PLAIN_FUNCTIONS[node.target]
    elif node.op == "call_function":
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}
        if not node.kwargs and len(node.args) == 2 and node.args[1] is True:
            node.args = node.args[:1]
