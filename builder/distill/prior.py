"""The quality prior: how much the outputs suffer when one alternative alone replaces the original."""

from __future__ import annotations

import torch
from torch import Tensor

from builder.elastify.supernet import Features, Supernet

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
            oracle = supernet.features(batch, supernet.space.default)
            for index, group in enumerate(supernet.space.groups):
                for value in range(1, group.size):
                    gates = supernet.space.default.replace(index, value)
                    # Nothing differs before the changed unit.
                    sums[index][value] += _divergence(supernet.resume(oracle, index, gates), oracle)
    return tuple(tuple(max(0.0, total / len(images)) for total in row) for row in sums)


def _divergence(subnet: Features, oracle: Features) -> float:
    """Sum over a batch."""
    own, wanted = (run.outputs[0].log_softmax(1) for run in (subnet, oracle))
    return torch.nn.functional.kl_div(own, wanted, log_target=True, reduction="sum").item()
