"""The quality prior: how much the outputs suffer when one alternative alone replaces the original."""

from __future__ import annotations

import torch
from torch import Tensor

from builder.elastify.supernet import Supernet
from edge_runtime.gates import Gates

__all__ = ["measure_prior"]


def measure_prior(supernet: Supernet, images: Tensor) -> tuple[tuple[float, ...], ...]:
    """Mean KL divergence from the oracle's outputs, per unit and alternative; 0 for the original.

    Args:
        supernet: trained; used in eval mode.
        images: a few hundred preprocessed images [N, C, H, W], not used in training.
    """
    supernet.eval()
    default = supernet.space.default
    with torch.no_grad():
        wanted = _log_probabilities(supernet, images, default)
        return tuple(
            (0.0, *(_divergence(supernet, images, default.replace(index, value), wanted) for value in range(1, g.size)))
            for index, g in enumerate(supernet.space.groups)
        )


def _log_probabilities(supernet: Supernet, images: Tensor, gates: Gates) -> Tensor:
    return torch.cat([supernet(batch, gates).log_softmax(1) for batch in images.split(64)])


def _divergence(supernet: Supernet, images: Tensor, gates: Gates, wanted: Tensor) -> float:
    own = _log_probabilities(supernet, images, gates)
    return max(0.0, torch.nn.functional.kl_div(own, wanted, log_target=True, reduction="batchmean").item())
