"""Which channels of a unit belong together, and may be pruned together.

Element-wise operations, BN, pooling, padding and depthwise convolutions tie their input's channels to their output's;
additions and products of equal width tie their operands. A class of tied values that reaches neither the unit's input
nor its output is an inner width: its producers can lose output channels and its consumers input channels, together.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from builder.elastify.trace import is_activation, is_add, module_of, shape_of

__all__ = ["InnerWidth", "inner_widths", "is_depthwise"]


@dataclass(frozen=True, slots=True)
class InnerWidth:
    """A set of values inside a unit whose channels are pruned together."""

    channels: int
    """Number of channels today."""

    producers: tuple[str, ...]
    """Convolutions (by module path) whose output channels these are."""

    carriers: tuple[str, ...]
    """BN and depthwise convolutions that keep these channels apart from each other."""

    consumers: tuple[str, ...]
    """Convolutions whose input channels these are."""


def is_depthwise(module: nn.Module | None) -> bool:
    """Whether each output channel of a convolution reads the input channel of the same index only."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def inner_widths(unit: fx.GraphModule) -> list[InnerWidth]:
    """The prunable widths of a unit, in order of their first producer; empty where nothing may be pruned."""
    parent: dict[fx.Node, fx.Node] = {node: node for node in unit.graph.nodes}
    refused: set[fx.Node] = set()
    for node in unit.graph.nodes:
        tied = _tied_inputs(unit, node)
        if tied is None:
            refused.update((node, *node.all_input_nodes))
        for other in tied or ():
            parent[_root(parent, node)] = _root(parent, other)
    blocked = {_root(parent, node) for node in refused} | {_root(parent, node) for node in _ends(unit.graph)}
    return _collect(unit, parent, blocked)


def _root(parent: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    while parent[node] is not node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


def _ends(graph: fx.Graph) -> list[fx.Node]:
    """Nodes whose channels the rest of the network sees: the unit's input and its output."""
    return [node for node in graph.nodes if node.op in ("placeholder", "output")]


def _tied_inputs(unit: fx.GraphModule, node: fx.Node) -> list[fx.Node] | None:
    """Inputs whose channels are the node's own; empty for a dense convolution; None where nothing is known."""
    if node.op == "placeholder":
        return []
    inputs = node.all_input_nodes
    module = module_of(unit, node)
    if isinstance(module, nn.Conv2d):
        if module.groups == 1:
            return []
        return inputs if is_depthwise(module) else None
    if node.op == "output" or is_activation(unit, node) or _keeps_channels(module, node):
        return inputs
    if (is_add(node) or _is_mul(node)) and len({shape_of(i)[1:2] for i in inputs}) == 1:
        return inputs
    return None


def _is_mul(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", node.target) == "mul"


def _keeps_channels(module: nn.Module | None, node: fx.Node) -> bool:
    kept = (nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.ZeroPad2d)
    if isinstance(module, kept):
        return True
    name = getattr(node.target, "__name__", node.target)
    return node.op != "call_module" and name in ("pad", "_pad", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")


def _collect(unit: fx.GraphModule, parent: dict[fx.Node, fx.Node], blocked: set[fx.Node]) -> list[InnerWidth]:
    producers: dict[fx.Node, list[str]] = {}
    carriers: dict[fx.Node, list[str]] = {}
    consumers: dict[fx.Node, list[str]] = {}
    widths: dict[fx.Node, int] = {}
    for node in unit.graph.nodes:
        module, root = module_of(unit, node), _root(parent, node)
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            producers.setdefault(root, []).append(str(node.target))
            widths[root] = module.out_channels
            consumers.setdefault(_root(parent, node.all_input_nodes[0]), []).append(str(node.target))
        elif isinstance(module, nn.BatchNorm2d) or is_depthwise(module):
            carriers.setdefault(root, []).append(str(node.target))
    return [
        InnerWidth(widths[root], tuple(made), tuple(carriers.get(root, ())), tuple(consumers[root]))
        for root, made in producers.items()
        if root not in blocked and root in consumers
    ]
