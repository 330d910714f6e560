"""What training has made of a supernet: how often its best subnets answer as the network itself does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from builder.distill.sampler import checked_cost
from builder.elastify import Supernet
from builder.training import Compute
from edge_runtime.additive import AdditiveCost, Plan
from edge_runtime.gates import Gates

__all__ = ["agreement", "agreement_line"]

SHARES = (0.8, 0.6, 0.4)
"""Of the network's cost, at which a subnet is looked at."""

_BATCH = 64


def agreement(
    supernet: Supernet,
    prior: Sequence[Sequence[float]],
    images: Tensor,
    *,
    latency: AdditiveCost | None = None,
    compute: Compute | None = None,
) -> dict[float, float]:
    """For each share of the cost the part of `images` that the best subnet within it answers as the full one, 0 to 1.

    Args:
        supernet: trained, on the CPU, where it is left; its first output are class logits.
        prior: per unit and alternative what it costs in quality: by it a subnet is the best of those within a share.
        images: preprocessed, float32 [N, C, H, W]; others than the prior was measured on, where there are others.
        latency: a device's table, of which the shares are meant; of multiply-accumulates without one.
        compute: where it runs; the CPU where it is not given.

    Returns:
        A figure for each of `SHARES` within which there is a subnet.

    Raises:
        UsageError: the latency table is of another supernet.
    """
    cost, damage = checked_cost(supernet, latency), AdditiveCost.damage(supernet.space, prior)
    default, compute = supernet.space.default, compute or Compute()
    plans = {share: Plan(cost, damage, share * cost(default)) for share in SHARES}
    compute.place_module(supernet)
    try:
        own = _answers(supernet, images, default, compute)
        return {
            share: (_answers(supernet, images, plan.best(), compute) == own).float().mean().item()
            for share, plan in plans.items()
            if plan.feasible
        }
    finally:
        supernet.to("cpu")


def agreement_line(found: Mapping[float, float], images: int, unit: str) -> list[str]:
    """What `agreement` found, in one line; none where nothing was found.

    Args:
        found: by share.
        images: how many there were.
        unit: what the shares are of. Example: ``multiply-accumulates``.
    """
    if not found:
        return []
    each = ", ".join(f"{part:.1%} at {share:.0%}" for share, part in found.items())
    return [f"the likely best subnets answer {images} held-out images as the network does: {each} of its {unit}"]


def _answers(supernet: Supernet, images: Tensor, gates: Gates, compute: Compute) -> Tensor:
    """The class that a subnet names for each image, int64 [N]."""
    with torch.no_grad():
        batches = (compute.place((batch, None))[0] for batch in images.split(_BATCH))
        return torch.cat([supernet.features(batch, gates).outputs[0].argmax(1) for batch in batches])
