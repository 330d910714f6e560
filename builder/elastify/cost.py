"""Multiply-accumulates of a traced piece: a device-free proxy of its cost, used to spread training paths."""

from __future__ import annotations

import math

from torch import fx, nn

from builder.elastify.trace import module_of, shape_of

__all__ = ["multiply_accumulates"]


def multiply_accumulates(module: nn.Module) -> int:
    """For one image, from the shapes that tracing recorded; 0 for an identity.

    A narrowed copy keeps its source's spatial sizes, so recorded heights and widths stay true; channels are read from
    the modules themselves.
    """
    if not isinstance(module, fx.GraphModule):
        return 0
    return sum(_node_cost(module, node) for node in module.graph.nodes)


def _node_cost(module: fx.GraphModule, node: fx.Node) -> int:
    layer = module_of(module, node)
    if isinstance(layer, nn.Conv2d):
        return layer.weight.numel() * math.prod(shape_of(node)[2:])
    if isinstance(layer, nn.Linear):
        return layer.weight.numel()
    return 0
