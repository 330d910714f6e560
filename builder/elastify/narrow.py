"""Narrower copies of a unit: fewer inner channels, kept by importance measured on data.

The importance of an inner channel is the root mean square of its activation times the norm of the weights that read
it: what the unit's output would miss. (Weight-only criteria and "the first k" ignore that a channel may be silent.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import fx, nn

from builder.elastify.channels import InnerWidth, inner_widths, is_depthwise

__all__ = ["channel_importance", "kept_channels", "narrow"]

CHANNEL_STEP = 16
"""Kept channels are a multiple of this (half of it in very thin layers): CPU kernels work on blocks of 8 or 16."""


def channel_importance(unit: fx.GraphModule, inputs: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Importance of each inner channel: first producer of the width -> float tensor [channels], larger is better.

    Args:
        unit: a unit from `find_segments`, in eval mode.
        inputs: batches [N, C, H, W] that really enter this unit.
    """
    widths = inner_widths(unit)
    power = _input_power(unit, {name for width in widths for name in width.consumers}, inputs)
    return {width.producers[0]: _importance(unit, width, power) for width in widths}


def _importance(unit: fx.GraphModule, width: InnerWidth, power: dict[str, torch.Tensor]) -> torch.Tensor:
    total = torch.zeros(width.channels)
    for name in width.consumers:
        weight = unit.get_submodule(name).weight.detach()  # [out, in, k, k]
        total += weight.pow(2).sum(dim=(0, 2, 3)) * power[name]
    return total.sqrt()


def _input_power(unit: fx.GraphModule, consumers: set[str], inputs: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mean square of each input channel of the named convolutions."""
    sums: dict[str, torch.Tensor] = {}
    batches = 0

    def record(name: str) -> object:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            value = args[0].detach().pow(2).mean(dim=(0, 2, 3))
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


def narrow(unit: fx.GraphModule, ratio: float, importance: dict[str, torch.Tensor]) -> fx.GraphModule | None:
    """A trainable copy of `unit` with about `ratio` of each inner width; None where no width can shrink."""
    widths = [width for width in inner_widths(unit) if kept_channels(width.channels, ratio) < width.channels]
    if not widths:
        return None
    result = copy.deepcopy(unit)
    for width in widths:
        count = kept_channels(width.channels, ratio)
        kept = importance[width.producers[0]].topk(count).indices.sort().values
        _shrink(result, width, kept)
    for parameter in result.parameters():
        parameter.requires_grad_(True)
    return result


def _shrink(unit: fx.GraphModule, width: InnerWidth, kept: torch.Tensor) -> None:
    for name in width.producers:
        _keep_outputs(unit.get_submodule(name), kept)
    for name in width.carriers:
        _keep_outputs(unit.get_submodule(name), kept)
    for name in width.consumers:
        module = unit.get_submodule(name)
        module.weight = nn.Parameter(module.weight.detach()[:, kept].clone())
        module.in_channels = len(kept)


def _keep_outputs(module: nn.Module, kept: torch.Tensor) -> None:
    for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if value.ndim:
            sliced = value.detach()[kept].clone()
            setattr(module, name, nn.Parameter(sliced) if isinstance(value, nn.Parameter) else sliced)
    if isinstance(module, nn.BatchNorm2d):
        module.num_features = len(kept)
        return
    if is_depthwise(module):
        module.groups = module.in_channels = len(kept)
    module.out_channels = len(kept)
