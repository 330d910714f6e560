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
from builder.int8.modules import Coding, Dequantize, Quantize, QuantizedConv
from edge_runtime.backends.base import Array
from edge_runtime.backends.onnx.modules import read_tensor
from edge_runtime.backends.onnx.passes.names import graphs_of
from edge_runtime.bundle import Bundle

__all__ = ["check_codes"]

_OPERATORS = ("QLinearConv", "QuantizeLinear", "DequantizeLinear")

_SIZES = ("strides", "pads", "dilations", "group")
"""Attributes of a convolution."""


def check_codes(supernet: Supernet, bundle: Bundle) -> int:
    """Compare all numbers of all layers in 8 bits, and of what makes and reads codes; gives how many there are.

    Args:
        supernet: what was exported.
        bundle: the result of `pack`.

    Raises:
        BuildError: a layer is missing, or has another number somewhere.
    """
    import onnx

    graphs = list(graphs_of(onnx.load_from_string(bundle.model_bytes).graph))
    nodes = {
        node.name: node for each in graphs for node in each.node if node.op_type in _OPERATORS and _has_codes(node)
    }
    tensors = {tensor.name: tensor for each in graphs for tensor in each.initializer}
    layers = dict(_layers(supernet))
    if nodes.keys() != layers.keys():
        odd = sorted(nodes.keys() ^ layers.keys())
        raise BuildError(f"of the layers in 8 bits one side alone has {odd[0]!r}", hint="report this network")
    for name, layer in layers.items():
        sizes, wanted = _sizes(nodes[name]), _numbers(layer)
        found = [read_tensor(tensors[each], bundle.weights) for each in nodes[name].input[1:]]
        found += [np.array(sizes[each]) for each in _SIZES if each in sizes]
        if len(wanted) != len(found) or not all(map(_same, wanted, found)):
            raise BuildError(f"the layer {name!r} differs from torch", hint="report this network")
    return len(layers)


def _has_codes(node: Any) -> bool:
    """Whether a node takes or gives codes; what decodes a weight does not."""
    return len(node.input) > 2


def _sizes(node: Any) -> dict[str, list[int]]:
    return {each.name: list(each.ints) or [each.i] for each in node.attribute}


def _layers(supernet: Supernet) -> Iterator[tuple[str, QuantizedConv | Quantize | Dequantize]]:
    """Layers in 8 bits by the name of their node."""
    for index, group in enumerate(supernet.space.groups):
        for value, label in enumerate(group.labels):
            for name, layer in supernet.alternative(index, value).named_modules():
                if isinstance(layer, (QuantizedConv, Quantize, Dequantize)):
                    yield f"{group.name}.{label}.{name}", layer


def _numbers(layer: QuantizedConv | Quantize | Dequantize) -> list[Array]:
    """What the operator takes behind its input, in its order, and its attributes."""
    if not isinstance(layer, QuantizedConv):
        return _coding(layer.coding)
    weight: list[Array] = [layer.weight.numpy(), layer.weight_scale.numpy(), np.array(0, np.int8)]
    sizes = [layer.stride, layer.pads, layer.dilation, [layer.groups]]
    return [
        *_coding(layer.taken),
        *weight,
        *_coding(layer.given),
        layer.bias.numpy(),
        *(np.array(list(each)) for each in sizes),
    ]


def _coding(coding: Coding) -> list[Array]:
    return [np.array(coding.scale, np.float32), np.array(coding.zero, np.uint8)]


def _same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)
