"""The quality prior: how much the outputs suffer when one alternative alone replaces the original."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from builder.distill.losses import output_distance
from builder.elastify.supernet import Supernet
from builder.errors import BuildError

__all__ = ["measure_prior"]

_BATCH = 64


def measure_prior(supernet: Supernet, images: Tensor) -> tuple[tuple[float, ...], ...]:
    """How far the outputs are from the oracle's (`output_distance`), per unit and alternative; 0 for the original.

    Args:
        supernet: trained; used in eval mode.
        images: a few hundred preprocessed images [N, C, H, W], not used in training.

    Raises:
        BuildError: an alternative gives outputs that are not finite.
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
                    outputs = supernet.resume(oracle, index, gates).outputs
                    sums[index][value] += output_distance(outputs, oracle.outputs).item() * len(batch)
    for index, row in enumerate(sums):
        for value, total in enumerate(row):
            if not math.isfinite(total):
                label = supernet.space.groups[index].labels[value]
                raise BuildError(
                    f"alternative {label!r} of unit {index} is not finite", hint="train it at a lower rate"
                )
    return tuple(tuple(max(0.0, total / len(images)) for total in row) for row in sums)
