"""A trained piece of a network, with its convolutions in 8 bits; in closed form, from unlabelled data.

Each convolution takes a following normalisation and, where it only cuts off, a following activation into itself.
Convolutions that follow each other hand on codes; everything else is computed in float32 as before. Ranges of values
are cut where the squared error of what stays and of what is cut is least; each bias takes over the mean error of its
weights (Nagel et al. 2019, arXiv 1906.04721, section 4.2, on data).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from builder.elastify.folded import folded_copy
from builder.elastify.nodes import module_of, op_name, shape_of
from builder.int8.modules import LARGEST_WEIGHT, Coding, DecodedConv, DecodedLinear, Dequantize, Quantize, QuantizedConv

__all__ = ["Quantised", "quantised"]

CUTS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
"""Shares of a range that are tried."""

SAMPLES = 65_536
"""Values of a tensor, of each batch, by which its range is chosen."""

LARGEST_BIAS = 2**29
"""Of a layer in its units, so that sums of 32 bits have room for it and for the products."""

Pads = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution that can be computed in 8 bits."""

    conv: fx.Node
    source: fx.Node
    """What it reads, before zeros are put around it."""

    end: fx.Node
    """The activation that it takes over, or itself."""

    pads: Pads


@dataclass(frozen=True, slots=True)
class Quantised:
    """Two copies of a piece that share all stored weights."""

    coded: fx.GraphModule
    """Computes its convolutions in 8 bits."""

    decoded: fx.GraphModule
    """Computes everything in float32."""


def quantised(module: fx.GraphModule, inputs: Sequence[Tensor], *, stays: bool = False) -> Quantised | None:
    """Both copies of `module`; None where it has no convolution to compute in 8 bits.

    Args:
        module: a traced piece with one image [N, C, H, W] as its input, trained, in eval mode; left as it was.
        inputs: batches of what enters it.
        stays: whether `module` itself is kept as well: then the copies use its own weights where they compute in
            float32. Otherwise these are stored in 8 bits too.
    """
    result, decoded = folded_copy(module), folded_copy(module)
    layers = [layer for node in list(result.graph.nodes) if (layer := _layer(result, node)) is not None]
    if not layers:
        return None
    seen = _Values(result, {node for layer in layers for node in (layer.source, layer.end)}).of(inputs)
    codings = {node: _coding(values) for node, values in seen.items()}
    codes: dict[fx.Node, fx.Node] = {}
    for layer in layers:
        made, bias = _quantised(result, layer, codings, _sources(result, layer, inputs))
        name = str(layer.conv.target)
        like = decoded.get_submodule(name)
        decoded.set_submodule(name, DecodedConv(made.weight, made.weight_scale, bias, like))
        _replace(result, layer, made, codings, codes)
    result.graph.eliminate_dead_code()
    result.delete_all_unused_submodules()
    result.recompile()
    for copied in (result, decoded):
        _share(copied, module if stays else _stored_in_8_bits(result, decoded))
    return Quantised(result, decoded)


def _stored_in_8_bits(coded: fx.GraphModule, decoded: fx.GraphModule) -> fx.GraphModule:
    """`decoded`, with what both copies compute in float32 stored in 8 bits as well."""
    for node in list(decoded.graph.nodes):
        layer = module_of(decoded, node)
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            decoded.set_submodule(str(node.target), DecodedConv(*_coded_weights(layer), layer))
        elif type(layer) is nn.Linear and len(shape_of(node)) == 2:
            decoded.set_submodule(str(node.target), DecodedLinear(*_coded_weights(layer)))
    return decoded


def _coded_weights(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
    """Weights in 8 bits, their scales, and the bias."""
    weight = layer.weight.detach()
    scale = _weight_scale(weight)
    bias = layer.bias.detach() if layer.bias is not None else torch.zeros(len(weight))
    return _whole(weight, scale).to(torch.int8), scale, bias


def _share(copied: fx.GraphModule, source: fx.GraphModule) -> None:
    """Let a copy use the layers of `source` of the same names, where they still are what they were copied from."""
    known = dict(source.named_modules())
    for node in list(copied.graph.nodes):
        own, other = module_of(copied, node), known.get(str(node.target)) if node.op == "call_module" else None
        if own is None or other is None or own is other:
            continue
        if isinstance(other, (DecodedConv, DecodedLinear)) or _same(own, other):
            copied.set_submodule(str(node.target), other)


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers have the same values."""
    values, others = one.state_dict(), other.state_dict()
    return values.keys() == others.keys() and all(torch.equal(values[name], others[name]) for name in values)


def _layer(module: fx.GraphModule, node: fx.Node) -> _Layer | None:
    conv = module_of(module, node)
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    calls = sum(other.op == "call_module" and other.target == node.target for other in module.graph.nodes)
    source, pads = node.all_input_nodes[0], (*conv.padding, *conv.padding)
    if (around := _zeros(module, source)) is not None:
        source, pads = source.all_input_nodes[0], tuple(a + b for a, b in zip(pads, around, strict=True))
    reaches = [d * (size - 1) + 1 for d, size in zip(conv.dilation * 2, conv.kernel_size * 2, strict=True)]
    if any(pad >= reach for pad, reach in zip(pads, reaches, strict=True)):
        return None  # a window would lie in the padding alone, which onnxruntime is not given
    if calls != 1 or len(shape_of(source)) != 4 or math.prod(shape_of(node)[2:]) == 1:
        return None  # of one pixel there is less to compute than to encode
    users = list(node.users)
    end = users[0] if len(users) == 1 and _only_cuts_off(module, users[0]) else node
    return _Layer(node, source, end, pads)


def _zeros(module: fx.GraphModule, node: fx.Node) -> Pads | None:
    """How many zeros a node puts at the top, left, bottom and right of an image; None where it does something else."""
    if op_name(module, node) != "pad" or len(node.users) != 1 or len(node.args) < 2:
        return None
    _, sizes, *more = node.args
    if (
        more
        or node.kwargs.get("mode", "constant") != "constant"
        or node.kwargs.get("value")
        or len(sizes) != 4
        or min(sizes) < 0
    ):
        return None
    left, right, top, bottom = sizes
    return top, left, bottom, right


def _only_cuts_off(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is an activation that keeps what lies in one range, and gives the range's ends elsewhere."""
    return op_name(module, node) in ("ReLU", "relu", "ReLU6", "relu6")


class _Values(fx.Interpreter):
    """Runs a graph and keeps a sample of some values."""

    def __init__(self, module: fx.GraphModule, nodes: set[fx.Node]) -> None:
        super().__init__(module)
        self._nodes, self._found = nodes, dict[fx.Node, list[Tensor]]()

    def of(self, inputs: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
        """Up to `SAMPLES` values of each batch, evenly over it, with its least and largest."""
        with torch.no_grad():
            for batch in inputs:
                self.run(batch)
        return {node: torch.cat(parts) for node, parts in self._found.items()}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n in self._nodes and isinstance(result, Tensor):
            flat = result.flatten()
            few = flat[:: max(1, len(flat) // SAMPLES)]
            self._found.setdefault(n, []).append(torch.cat([few, flat.min()[None], flat.max()[None]]))
        return result


def _coding(values: Tensor) -> Coding:
    low, high = values.min().item(), values.max().item()
    tried = [Coding.of_range(low * cut, high * cut) for cut in CUTS]
    return min(tried, key=lambda coding: (coding.values(coding.codes(values)) - values).square().mean().item())


def _sources(module: fx.GraphModule, layer: _Layer, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What enters a layer, from the layers before it as they are now."""
    kept: list[Tensor] = []

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n is layer.source:
                kept.append(result)
            return result

    with torch.no_grad():
        for batch in inputs:
            Recorder(module).run(batch)
    return kept


def _quantised(
    module: fx.GraphModule, layer: _Layer, codings: dict[fx.Node, Coding], sources: Sequence[Tensor]
) -> tuple[QuantizedConv, Tensor]:
    """A layer in 8 bits, and its bias in float32."""
    conv = module_of(module, layer.conv)
    assert isinstance(conv, nn.Conv2d)
    taken, given = codings[layer.source], codings[layer.end]
    weight = conv.weight.detach()
    constant = conv.bias.detach() if conv.bias is not None else torch.zeros(len(weight))
    # Of a channel whose weights are next to nothing the bias must still be a number of its units.
    scale = torch.maximum(_weight_scale(weight), constant.abs() / (taken.scale * LARGEST_BIAS))
    whole = _whole(weight, scale)
    missing = weight - whole * scale.view(-1, 1, 1, 1)
    top, left, bottom, right = layer.pads
    errors = [
        functional.conv2d(
            functional.pad(x, (left, right, top, bottom)), missing, None, conv.stride, 0, conv.dilation, conv.groups
        ).mean((0, 2, 3))
        for x in sources
    ]
    bias = constant + torch.stack(errors).mean(0)
    units = torch.round(bias.double() / (taken.scale * scale.double())).clamp(-2 * LARGEST_BIAS, 2 * LARGEST_BIAS)
    made = QuantizedConv(
        whole.to(torch.int8),
        scale,
        units.to(torch.int32),
        taken=taken,
        given=given,
        stride=conv.stride,
        pads=layer.pads,
        dilation=conv.dilation,
        groups=conv.groups,
    )
    return made, bias


def _whole(weight: Tensor, scale: Tensor) -> Tensor:
    """Weights in units of their channel's scale, rounded and cut off, float32."""
    units = torch.round(weight / scale.view(-1, *(1,) * (weight.ndim - 1)))
    return units.clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)


def _weight_scale(weight: Tensor) -> Tensor:
    """For each output channel the scale with the least squared error, float32 [O]."""
    rows = weight.flatten(1)
    largest = rows.abs().amax(1).clamp_min(1e-12)
    scales = torch.stack([largest * cut / LARGEST_WEIGHT for cut in CUTS])
    whole = torch.round(rows / scales[:, :, None]).clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)
    errors = (whole * scales[:, :, None] - rows).square().sum(2)
    return scales.gather(0, errors.argmin(0)[None])[0]


def _replace(
    module: fx.GraphModule,
    layer: _Layer,
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
