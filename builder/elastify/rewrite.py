"""Write new channel counts into the operations of a narrowed copy that name them: reshapes, splits and slices."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from builder.elastify.channels import ChannelPlan
from builder.elastify.nodes import tensor_inputs
from builder.elastify.slices import is_split, picked_range, split_axis, split_sizes

__all__ = ["rewrite_sizes"]


def rewrite_sizes(unit: fx.GraphModule, plan: ChannelPlan, kept: Mapping[int, Tensor]) -> None:
    """Mend `unit` whose layers keep the blocks `kept` of the widths of `plan`; its shapes are the old ones."""
    for node in unit.graph.nodes:
        if node.op == "call_method" and node.target == "reshape" and node.name in plan.values:
            _resize(node, plan, kept)
        elif is_split(unit, node) and tensor_inputs(node)[0].name in plan.values:
            _resplit(node, plan, kept)
        else:
            picked = picked_range(unit, node)
            if picked is not None and not is_split(unit, node.args[0]):
                _reslice(node, picked.source.name, plan, kept)
    unit.recompile()


def _resize(node: fx.Node, plan: ChannelPlan, kept: Mapping[int, Tensor]) -> None:
    axis, parts = plan.values[node.name]
    sizes = list(node.args)
    if isinstance(sizes[1 + axis], int) and sizes[1 + axis] > 0:
        sizes[1 + axis] = plan.width_of(parts, kept)
    node.args = tuple(sizes)


def _resplit(node: fx.Node, plan: ChannelPlan, kept: Mapping[int, Tensor]) -> None:
    axis, parts = plan.values[tensor_inputs(node)[0].name]
    if split_axis(node, 2) != axis:
        return
    sizes, start = [], 0
    for size in split_sizes(node, axis):
        sizes.append(plan.range_width(parts, start, start + size, kept))
        start += size
    node.op, node.target = "call_function", torch.split
    node.args, node.kwargs = (tensor_inputs(node)[0], sizes, axis), {}


def _reslice(node: fx.Node, source: str, plan: ChannelPlan, kept: Mapping[int, Tensor]) -> None:
    axis, parts = plan.values[source]
    total = sum(part.channels for part in parts)
    key = list(node.args[1])
    if axis >= len(key) or key[axis] == slice(None):
        return
    start, stop, _ = key[axis].indices(total)
    key[axis] = slice(plan.range_width(parts, 0, start, kept), plan.range_width(parts, 0, stop, kept))
    node.args = (node.args[0], tuple(key))
