"""Prove that the layers of a bundle that compute in 8 bits have torch's own numbers, bit by bit.

Outputs cannot: where float32 is summed in another order, single values become other codes, and what one wrong layer
makes of the outputs may be less.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from builder.elastify.supernet import Supernet
from builder.errors import BuildError
from builder.int8.modules import QuantizedConv
from edge_runtime.backends.base import Array
from edge_runtime.backends.onnx.modules import read_tensor
from edge_runtime.backends.onnx.passes.names import graphs_of
from edge_runtime.bundle import Bundle

__all__ = ["check_codes"]


def check_codes(supernet: Supernet, bundle: Bundle) -> int:
    """Compare codings, weights, scales and biases of all layers in 8 bits; gives how many there are.

    Args:
        supernet: what was exported.
        bundle: the result of `pack`.

    Raises:
        BuildError: a layer is missing, or has another number somewhere.
    """
    import onnx

    graph = onnx.load_from_string(bundle.model_bytes).graph
    graphs = list(graphs_of(graph))
    nodes = {node.name: node for each in graphs for node in each.node if node.op_type == "QLinearConv"}
    tensors = {tensor.name: tensor for each in graphs for tensor in each.initializer}
    layers = dict(_layers(supernet))
    if nodes.keys() != layers.keys():
        odd = sorted(nodes.keys() ^ layers.keys())
        raise BuildError(f"of the layers in 8 bits one side alone has {odd[0]!r}", hint="report this network")
    for name, layer in layers.items():
        found = [read_tensor(tensors[each], bundle.weights) for each in nodes[name].input[1:]]
        if not all(map(_same, _numbers(layer), found)):
            raise BuildError(f"the layer {name!r} differs from torch", hint="report this network")
    return len(layers)


def _layers(supernet: Supernet) -> Iterator[tuple[str, QuantizedConv]]:
    """Layers in 8 bits by the name of their node."""
    for index, group in enumerate(supernet.space.groups):
        for value, label in enumerate(group.labels):
            for name, layer in supernet.alternative(index, value).named_modules():
                if isinstance(layer, QuantizedConv):
                    yield f"{group.name}.{label}.{name}", layer


def _numbers(layer: QuantizedConv) -> list[Array]:
    """What QLinearConv takes behind its codes, in its order."""
    taken, given = ([np.array(c.scale, np.float32), np.array(c.zero, np.uint8)] for c in (layer.taken, layer.given))
    weight: list[Any] = [layer.weight.numpy(), layer.weight_scale.numpy(), np.array(0, np.int8)]
    return [*taken, *weight, *given, layer.bias.numpy()]


def _same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)
