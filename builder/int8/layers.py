"""Which convolutions of a traced piece can be computed in 8 bits, and what each of them takes into itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx, nn

from builder.elastify.nodes import module_of, op_name, pair, shape_of

__all__ = ["Layer", "is_its_own", "layer_of"]

MOST_PRODUCTS = 2**16
"""Of codes and weights in one sum: with the bias they fit 32 bits."""

Pads = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution that can be computed in 8 bits."""

    conv: fx.Node
    source: fx.Node
    """What it reads, before zeros are put around it."""

    end: fx.Node
    """The activation that it takes over, or itself."""

    pads: Pads
    """Zeros at the top, left, bottom and right."""


def layer_of(module: fx.GraphModule, node: fx.Node) -> Layer | None:
    """The layer that a node of a piece without normalisations is; None where it is none that 8 bits are for."""
    conv = module_of(module, node)
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    padding, kernel, dilation = pair(conv.padding), pair(conv.kernel_size), pair(conv.dilation)
    source, pads = node.all_input_nodes[0], (*padding, *padding)
    if (around := _zeros(module, source)) is not None:
        source, pads = source.all_input_nodes[0], tuple(a + b for a, b in zip(pads, around, strict=True))
    reaches = [reach * (size - 1) + 1 for reach, size in zip(dilation * 2, kernel * 2, strict=True)]
    if any(pad >= reach for pad, reach in zip(pads, reaches, strict=True)):
        return None  # a window would lie in the padding alone, which onnxruntime is not given
    if conv.weight[0].numel() > MOST_PRODUCTS or not is_its_own(module, node):
        return None
    if len(shape_of(source)) != 4 or math.prod(shape_of(node)[2:]) == 1:
        return None  # of one pixel there is less to compute than to encode
    users = list(node.users)
    end = users[0] if len(users) == 1 and _only_cuts_off(module, users[0]) else node
    return Layer(node, source, end, pads)


def is_its_own(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the layer that a node calls is called and read nowhere else."""
    others = [other for other in module.graph.nodes if other is not node and other.op in ("call_module", "get_attr")]
    return not any(f"{other.target}.".startswith(f"{node.target}.") for other in others)


def _zeros(module: fx.GraphModule, node: fx.Node) -> Pads | None:
    """How many zeros a node puts at the top, left, bottom and right of an image; None where it does something else."""
    if op_name(module, node) != "pad" or len(node.users) != 1 or len(node.args) < 2:
        return None
    _, sizes, *more = node.args
    plain = node.kwargs.get("mode", "constant") == "constant" and not node.kwargs.get("value") and not more
    if not plain or not isinstance(sizes, (list, tuple)) or len(sizes) != 4 or min(sizes) < 0:
        return None
    left, right, top, bottom = sizes
    return top, left, bottom, right


def _only_cuts_off(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is an activation that keeps what lies in one range, and gives the range's ends elsewhere."""
    return op_name(module, node) in ("ReLU", "relu", "ReLU6", "relu6")
