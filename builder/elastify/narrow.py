"""Narrower copies of a unit: fewer inner channels, kept by importance measured on data.

The importance of an inner channel is the root mean square of its activation times the norm of the weights that read
it: what the unit's output would miss. (Weight-only criteria and "the first k" ignore that a channel may be silent.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from builder.elastify.channels import ChannelPlan, InnerWidth, channel_plan
from builder.elastify.nodes import shape_of
from builder.elastify.rewrite import rewrite_sizes

__all__ = ["channel_importance", "kept_channels", "kept_units", "narrow"]

CHANNEL_STEP = 16
"""Kept channels are a multiple of this (half of it in very thin layers): CPU kernels work on blocks of 8 or 16."""


def channel_importance(unit: fx.GraphModule, inputs: Iterable[Tensor]) -> list[Tensor]:
    """Importance of each inner block of channels, by `inner_widths`: float tensors [units], larger is better.

    Args:
        unit: a unit from `find_segments`, in eval mode.
        inputs: batches [N, C, H, W] that really enter this unit.
    """
    plan = channel_plan(unit)
    power = _input_power(unit, {name for width in plan.widths for name in width.consumers}, inputs)
    return [_importance(unit, plan, index, power) for index in range(len(plan.widths))]


def _importance(unit: fx.GraphModule, plan: ChannelPlan, index: int, power: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(plan.widths[index].units)
    for name in plan.widths[index].consumers:
        energy = _input_energy(unit.get_submodule(name)) * power[name]
        total += plan.by_unit(plan.layers[name][0], energy, index)
    return total.sqrt()


def _input_energy(layer: nn.Module) -> Tensor:
    """Sum of the squared weights that read each input channel, [inputs]."""
    weight = layer.weight.detach()  # [out, in / groups, ...]
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    blocks = weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return blocks.pow(2).sum((1, 3)).flatten()


def _input_power(unit: fx.GraphModule, consumers: set[str], inputs: Iterable[Tensor]) -> dict[str, Tensor]:
    """Mean square of each input channel of the named layers."""
    sums: dict[str, Tensor] = {}
    batches = 0

    def record(name: str) -> object:
        channels_last = isinstance(unit.get_submodule(name), nn.Linear)

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            squares = args[0].detach().pow(2)
            axis = squares.ndim - 1 if channels_last else 1
            value = squares.mean(dim=[d for d in range(squares.ndim) if d != axis])
            sums[name] = sums[name] + value if name in sums else value

        return unit.get_submodule(name).register_forward_pre_hook(hook)

    handles = [record(name) for name in consumers]
    with torch.no_grad():
        for batch in inputs:
            unit(batch)
            batches += 1
    for handle in handles:
        handle.remove()
    return {name: value / batches for name, value in sums.items()}


def kept_channels(channels: int, ratio: float) -> int:
    """How many of `channels` a copy of width `ratio` in (0, 1] keeps: a multiple of 16 where that is possible."""
    wanted = channels * ratio
    step = CHANNEL_STEP if wanted >= CHANNEL_STEP else CHANNEL_STEP // 2
    return min(channels, max(step, round(wanted / step) * step))


def kept_units(width: InnerWidth, ratio: float) -> int:
    """How many of the width's blocks a copy of width `ratio` keeps; at least one in each balanced range."""
    size = width.channels // width.units
    if size == 1 and width.balance == 1:
        return kept_channels(width.channels, ratio)
    ranged = width.units // width.balance
    wanted = max(1, round(ranged * ratio))
    if width.balance > 1:
        wanted = max(1, round(kept_channels(width.channels, ratio) / width.balance))
    return min(ranged, wanted) * width.balance


def narrow(unit: fx.GraphModule, ratio: float, importance: Sequence[Tensor]) -> fx.GraphModule | None:
    """A trainable copy of `unit` with about `ratio` of each inner width; None where no width can shrink."""
    plan = channel_plan(unit)
    kept = {
        index: _most_important(importance[index], width, ratio)
        for index, width in enumerate(plan.widths)
        if kept_units(width, ratio) < width.units
    }
    if not kept:
        return None
    result = copy.deepcopy(unit)
    _shrink(result, plan, kept)
    for parameter in result.parameters():
        parameter.requires_grad_(True)
    return result


def _most_important(importance: Tensor, width: InnerWidth, ratio: float) -> Tensor:
    """Indices of the kept blocks, ascending; as many from each balanced range."""
    ranges = importance.view(width.balance, -1)
    chosen = ranges.topk(kept_units(width, ratio) // width.balance, dim=1).indices.sort(1).values
    return (chosen + torch.arange(width.balance)[:, None] * ranges.shape[1]).flatten()


def _shrink(unit: fx.GraphModule, plan: ChannelPlan, kept: Mapping[int, Tensor]) -> None:
    for name, (inputs, outputs) in plan.layers.items():
        _slice_layer(unit.get_submodule(name), plan.kept(inputs, kept), plan.kept(outputs, kept))
    for name, (axis, parts) in plan.constants.items():
        _slice_constant(unit, name, axis, plan.kept(parts, kept))
    rewrite_sizes(unit, plan, kept)
    _record_shapes(unit)


def _record_shapes(unit: fx.GraphModule) -> None:
    """Shapes are read by who exports the copy."""
    entry = next(node for node in unit.graph.nodes if node.op == "placeholder")
    with torch.no_grad():
        ShapeProp(unit).propagate(torch.zeros(shape_of(entry)))


def _slice_layer(layer: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    """Keep the input and output channels of the given indices."""
    if isinstance(layer, nn.Conv2d):
        layer.weight = nn.Parameter(_sliced_kernel(layer, inputs, outputs))
        layer.groups = len(inputs) // layer.weight.shape[1]
        layer.in_channels, layer.out_channels = len(inputs), len(outputs)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[outputs].clone())
    elif isinstance(layer, nn.Linear):
        layer.weight = nn.Parameter(layer.weight.detach()[outputs][:, inputs].clone())
        layer.in_features, layer.out_features = len(inputs), len(outputs)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[outputs].clone())
    else:
        _slice_vectors(layer, outputs)


def _sliced_kernel(conv: nn.Conv2d, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Kernel [out, in / groups, k, k] of the groups that still have outputs, block by block."""
    per_in, per_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    if conv.groups == 1:
        return conv.weight.detach()[outputs][:, inputs].clone()
    if per_in == 1:
        return conv.weight.detach()[outputs].clone()
    blocks = []
    for group in range(conv.groups):
        rows = outputs[outputs // per_out == group]
        columns = inputs[inputs // per_in == group] - group * per_in
        if len(rows):
            blocks.append(conv.weight.detach()[rows][:, columns])
    return torch.cat(blocks)


def _slice_vectors(norm: nn.Module, kept: Tensor) -> None:
    for name, value in [*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)]:
        if value.ndim:
            sliced = value.detach()[kept].clone()
            setattr(norm, name, nn.Parameter(sliced) if isinstance(value, nn.Parameter) else sliced)
    if isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (len(kept),)
    elif isinstance(norm, nn.PReLU):
        norm.num_parameters = len(kept)
    else:
        norm.num_features = len(kept)


def _slice_constant(unit: fx.GraphModule, name: str, axis: int, kept: Tensor) -> None:
    *path, leaf = name.split(".")
    holder = unit.get_submodule(".".join(path))
    value = getattr(holder, leaf)
    sliced = value.detach().index_select(axis, kept).clone()
    setattr(holder, leaf, nn.Parameter(sliced) if isinstance(value, nn.Parameter) else sliced)
