"""A trained piece of a network, with its convolutions in 8 bits; in closed form, from unlabelled data.

Each convolution takes a following normalisation and, where it only cuts off, a following activation into itself.
Convolutions that follow each other hand on codes; everything else is computed in float32 as before. Ranges of values
are cut where the squared error of what stays and of what is cut is least; each bias takes over the mean error of its
weights (Nagel et al. 2019, arXiv 1906.04721, section 4.2, on data).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from builder.elastify.folded import folded_copy
from builder.elastify.nodes import module_of, pair, shape_of
from builder.elastify.refit import node_values
from builder.int8.layers import Layer, is_its_own, layer_of
from builder.int8.modules import Coding, Decoded, DecodedConv, DecodedLinear, Dequantize, Quantize, QuantizedConv
from builder.int8.ranges import Values, coding_of, stored_weights, weight_scale, whole_weights

__all__ = ["Quantised", "quantised"]

LARGEST_BIAS = 2**29
"""Of a layer in its units, so that sums of 32 bits have room for it and for the products."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """Two copies of a piece that share all stored weights."""

    coded: fx.GraphModule | None
    """Computes its convolutions in 8 bits; None where it has none for that."""

    decoded: fx.GraphModule
    """Computes everything in float32."""


def quantised(module: fx.GraphModule, inputs: Sequence[Tensor], *, stays: bool = False) -> Quantised | None:
    """Both copies of `module`; None where nothing of it can be in 8 bits, or a value is not finite.

    Args:
        module: a traced piece with one image [N, C, H, W] as its input, trained, in eval mode; left as it was.
        inputs: batches of what enters it.
        stays: whether `module` itself is kept as well: then the copies use its own weights where they compute in
            float32. Otherwise these are stored in 8 bits too.
    """
    result, decoded = folded_copy(module), folded_copy(module)
    layers = [layer for node in list(result.graph.nodes) if (layer := layer_of(result, node)) is not None]
    if not all(value.isfinite().all() for value in module.parameters()):
        return None
    if not layers:
        return None if stays or not _store_in_8_bits(decoded) else Quantised(None, decoded)
    seen = Values(result, {node for layer in layers for node in (layer.source, layer.end)}).of(inputs)
    if not all(values.isfinite().all() for values in seen.values()):
        return None
    codings = {node: coding_of(values) for node, values in seen.items()}
    codes: dict[fx.Node, fx.Node] = {}
    for layer in layers:
        # Made anew for each layer, as all of them at once would take much memory.
        sources = [node_values(result, batch)[layer.source] for batch in inputs]
        made, bias = _quantised(result, layer, codings, sources)
        name = str(layer.conv.target)
        like = decoded.get_submodule(name)
        decoded.set_submodule(name, DecodedConv(made.weight, made.weight_scale, bias, like))
        _replace(result, layer, made, codings, codes)
    result.graph.eliminate_dead_code()
    result.delete_all_unused_submodules()
    result.recompile()
    if not stays:
        _store_in_8_bits(decoded)
    for copied in (result, decoded):
        _share(copied, module if stays else decoded)
    return Quantised(result, decoded)


def _store_in_8_bits(decoded: fx.GraphModule) -> bool:
    """Of the layers that do not compute in 8 bits, too, the weights; whether there are any in 8 bits then."""
    for node in list(decoded.graph.nodes):
        layer = module_of(decoded, node)
        if layer is None or not is_its_own(decoded, node):
            continue
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            decoded.set_submodule(str(node.target), DecodedConv(*stored_weights(layer), layer))
        elif type(layer) is nn.Linear and len(shape_of(node)) == 2:
            decoded.set_submodule(str(node.target), DecodedLinear(*stored_weights(layer)))
    return any(isinstance(layer, Decoded) for layer in decoded.modules())


def _share(copied: fx.GraphModule, source: fx.GraphModule) -> None:
    """Let a copy use the layers of `source` of the same names, where they still are what they were copied from."""
    known = dict(source.named_modules())
    for node in list(copied.graph.nodes):
        own, other = module_of(copied, node), known.get(str(node.target)) if node.op == "call_module" else None
        if own is None or other is None or own is other:
            continue
        if isinstance(other, Decoded) or _same(own, other):
            copied.set_submodule(str(node.target), other)


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers have the same values."""
    values, others = one.state_dict(), other.state_dict()
    return values.keys() == others.keys() and all(torch.equal(values[name], others[name]) for name in values)


def _quantised(
    module: fx.GraphModule, layer: Layer, codings: dict[fx.Node, Coding], sources: Sequence[Tensor]
) -> tuple[QuantizedConv, Tensor]:
    """A layer in 8 bits, and its bias in float32."""
    conv = module_of(module, layer.conv)
    assert isinstance(conv, nn.Conv2d)
    taken, given = codings[layer.source], codings[layer.end]
    weight = conv.weight.detach()
    constant = conv.bias.detach() if conv.bias is not None else torch.zeros(len(weight))
    # Of a channel whose weights are next to nothing the bias must still be a number of its units.
    scale = torch.maximum(weight_scale(weight), constant.abs() / (taken.scale * LARGEST_BIAS))
    whole = whole_weights(weight, scale)
    missing = weight - whole * scale.view(-1, 1, 1, 1)
    top, left, bottom, right = layer.pads
    sums = [
        functional.conv2d(
            functional.pad(x, (left, right, top, bottom)), missing, None, conv.stride, 0, conv.dilation, conv.groups
        )
        .mean((2, 3))
        .sum(0)
        for x in sources
    ]
    bias = constant + torch.stack(sums).sum(0) / sum(map(len, sources))
    units = torch.round(bias.double() / (taken.scale * scale.double())).clamp(-2 * LARGEST_BIAS, 2 * LARGEST_BIAS)
    made = QuantizedConv(
        whole.to(torch.int8),
        scale,
        units.to(torch.int32),
        taken=taken,
        given=given,
        stride=pair(conv.stride),
        pads=layer.pads,
        dilation=pair(conv.dilation),
        groups=conv.groups,
    )
    return made, bias


def _replace(
    module: fx.GraphModule,
    layer: Layer,
    made: QuantizedConv,
    codings: dict[fx.Node, Coding],
    codes: dict[fx.Node, fx.Node],
) -> None:
    """Put a layer in 8 bits in its place; `codes` has for each value the node that gives its codes."""
    graph, name = module.graph, layer.conv.name
    if layer.source not in codes:
        module.add_module(f"{name}_codes", Quantize(codings[layer.source]))
        with graph.inserting_after(layer.source):
            codes[layer.source] = _called(graph, f"{name}_codes", layer.source, layer.source)
    module.add_module(f"{name}_int8", made)
    module.add_module(f"{name}_values", Dequantize(made.given))
    with graph.inserting_after(layer.end):
        whole = _called(graph, f"{name}_int8", codes[layer.source], layer.end)
    with graph.inserting_after(whole):
        values = _called(graph, f"{name}_values", whole, layer.end)
    layer.end.replace_all_uses_with(values, delete_user_cb=lambda user: user is not whole)
    codes[layer.end] = codes[values] = whole
    module.recompile()


def _called(graph: fx.Graph, name: str, value: fx.Node, like: fx.Node) -> fx.Node:
    node = graph.call_module(name, (value,))
    node.meta = copy.copy(like.meta)
    return node
