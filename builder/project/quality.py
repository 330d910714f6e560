"""What training has made of a supernet: how often its best subnets answer as the network itself does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from builder.distill.sampler import checked_cost
from builder.elastify import Supernet
from edge_runtime.additive import AdditiveCost, Plan
from edge_runtime.gates import Gates

__all__ = ["agreement_lines"]

SHARES = (0.8, 0.6, 0.4)
"""Of the network's cost, at which a subnet is looked at."""

_BATCH = 32


def agreement_lines(
    supernet: Supernet, prior: Sequence[Sequence[float]], images: Tensor, latency: AdditiveCost | None = None
) -> list[str]:
    """One line on the subnets that the prior holds for the best within shares of the cost; none where none is feasible.

    Args:
        supernet: trained, in eval mode, with class logits as its first output.
        prior: what each alternative costs in quality.
        images: held out, as the network takes them, float32 [N, C, H, W].
        latency: a device's table, in whose milliseconds the shares are meant; multiply-accumulates without one.
    """
    cost, damage = checked_cost(supernet, latency), AdditiveCost.damage(supernet.space, prior)
    full = cost(supernet.space.default)
    plans = {share: Plan(cost, damage, share * full) for share in SHARES}
    own = _answers(supernet, images, supernet.space.default)
    found = [
        f"{(_answers(supernet, images, plan.best()) == own).float().mean():.0%} at {share:.0%}"
        for share, plan in plans.items()
        if plan.feasible
    ]
    if not found:
        return []
    unit = "multiply-accumulates" if latency is None else "predicted latency"
    return [f"subnets that answer {len(images)} held-out images as the network does: {', '.join(found)} of its {unit}"]


def _answers(supernet: Supernet, images: Tensor, gates: Gates) -> Tensor:
    """The class that a subnet names for each image, int64 [N]."""
    device = next(supernet.parameters()).device
    with torch.no_grad():
        outputs = [supernet.features(batch.to(device), gates).outputs[0] for batch in images.split(_BATCH)]
    return torch.cat(outputs).argmax(1)
