"""The quality prior: how much the outputs suffer when one alternative alone replaces the original."""

from __future__ import annotations

import torch
from torch import Tensor

from builder.elastify.supernet import Supernet
from edge_runtime.gates import Gates

__all__ = ["measure_prior"]

_BATCH = 64


def measure_prior(supernet: Supernet, images: Tensor) -> tuple[tuple[float, ...], ...]:
    """Mean KL divergence from the oracle's outputs, per unit and alternative; 0 for the original.

    Args:
        supernet: trained; used in eval mode.
        images: a few hundred preprocessed images [N, C, H, W], not used in training.
    """
    supernet.eval()
    sums = [[0.0] * group.size for group in supernet.space.groups]
    with torch.no_grad():
        for batch in images.split(_BATCH):
            features = _oracle_features(supernet, batch)
            for index, group in enumerate(supernet.space.groups):
                for value in range(1, group.size):
                    gates = supernet.space.default.replace(index, value)
                    sums[index][value] += _divergence(supernet, features, index, gates)
    return tuple(tuple(max(0.0, total / len(images)) for total in row) for row in sums)


def _oracle_features(supernet: Supernet, batch: Tensor) -> list[Tensor]:
    """What enters each segment on the oracle's path, then its outputs."""
    behind = supernet.features(batch, supernet.space.default)
    return [batch, *(value for value in behind if value is not None)]


def _divergence(supernet: Supernet, features: list[Tensor], unit: int, gates: Gates) -> float:
    """Sum over a batch; nothing differs before the changed unit, so only what follows runs."""
    first = supernet.units[unit].segment
    outputs = supernet.features(features[first], gates, first=first)[-1]
    own, wanted = (logits.log_softmax(1) for logits in (outputs, features[-1]))
    return torch.nn.functional.kl_div(own, wanted, log_target=True, reduction="sum").item()
