"""Ranges of values and of weights: where they are cut for the least squared error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from builder.int8.modules import LARGEST_WEIGHT, Coding

__all__ = ["Values", "coding_of", "stored_weights", "weight_scale", "whole_weights"]

CUTS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
"""Shares of a range that are tried."""

SAMPLES = 65_536
"""Values of a tensor, of each batch, by which its range is chosen."""


class Values(fx.Interpreter):
    """Runs a graph and keeps a sample of some values."""

    def __init__(self, module: fx.GraphModule, nodes: set[fx.Node]) -> None:
        super().__init__(module)
        self._nodes, self._found = nodes, dict[fx.Node, list[Tensor]]()

    def of(self, inputs: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
        """Up to `SAMPLES` values of each batch at random places, with its least and largest."""
        with torch.no_grad():
            for batch in inputs:
                self.run(batch)
        return {node: torch.cat(parts) for node, parts in self._found.items()}

    def run_node(self, n: fx.Node) -> object:
        """As the base class."""
        result = super().run_node(n)
        if n in self._nodes and isinstance(result, Tensor):
            flat, parts = result.flatten(), self._found.setdefault(n, [])
            few = flat[_places(len(flat), seed=len(parts))] if len(flat) > SAMPLES else flat
            parts.append(torch.cat([few, flat.min()[None], flat.max()[None]]))
        return result


def _places(count: int, *, seed: int) -> Tensor:
    """The same places for a value of one unit as for the same value of the next one."""
    return torch.randint(count, (SAMPLES,), generator=torch.Generator().manual_seed(seed))


def coding_of(values: Tensor) -> Coding:
    """The coding of finite values with the least squared error, of those that span a share of their range."""
    low, high = values.min().item(), values.max().item()
    tried = [Coding.of_range(low * cut, high * cut) for cut in CUTS]
    return min(tried, key=lambda coding: (coding.values(coding.codes(values)) - values).square().mean().item())


def whole_weights(weight: Tensor, scale: Tensor) -> Tensor:
    """Weights in units of their channel's scale, rounded and cut off, float32."""
    units = torch.round(weight / scale.view(-1, *(1,) * (weight.ndim - 1)))
    return units.clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)


def weight_scale(weight: Tensor) -> Tensor:
    """For each output channel the scale with the least squared error, float32 [O]."""
    rows = weight.flatten(1)
    largest = rows.abs().amax(1).clamp_min(1e-12)
    scales = torch.stack([largest * cut / LARGEST_WEIGHT for cut in CUTS])
    whole = torch.round(rows / scales[:, :, None]).clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)
    errors = (whole * scales[:, :, None] - rows).square().sum(2)
    return scales.gather(0, errors.argmin(0)[None])[0]


def stored_weights(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
    """Weights in 8 bits, their scales, and the bias."""
    weight = layer.weight.detach()
    scale = weight_scale(weight)
    bias = layer.bias.detach() if layer.bias is not None else torch.zeros(len(weight))
    return whole_weights(weight, scale).to(torch.int8), scale, bias
