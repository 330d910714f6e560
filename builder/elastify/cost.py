"""Multiply-accumulates and bytes of a traced piece: device-free proxies of its cost."""

from __future__ import annotations

import math

from torch import fx, nn

from builder.elastify.nodes import module_of, shape_of

__all__ = ["multiply_accumulates", "node_macs", "storage_bytes"]


def multiply_accumulates(module: nn.Module) -> int:
    """For one image, from the shapes that tracing recorded; 0 for an identity.

    A narrowed copy keeps its source's spatial sizes, so recorded heights and widths stay true; channels are read from
    the modules themselves.
    """
    if not isinstance(module, fx.GraphModule):
        return 0
    return sum(node_macs(module, node) for node in module.graph.nodes)


def node_macs(module: fx.GraphModule, node: fx.Node) -> int:
    """Multiply-accumulates of one node for one image; only convolutions and linear layers count."""
    layer = module_of(module, node)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return layer.weight.numel() * math.prod(shape_of(node)[2:])
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return layer.weight.numel() * math.prod(shape_of(node.all_input_nodes[0])[2:])
    if isinstance(layer, nn.Linear):
        return layer.weight.numel() * math.prod(shape_of(node)[1:-1])
    return 0


def storage_bytes(module: nn.Module) -> int:
    """Bytes of all weights and statistics; counters are left out."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers()) if t.ndim}
    return sum(t.numel() * t.element_size() for t in tensors.values())
