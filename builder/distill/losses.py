"""What student and teacher differ by, per output and per feature; all in float32, whatever autocast does around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["normalised_error", "output_distance", "soft_divergence"]

_TINY = 1e-8


def normalised_error(value: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the variance of the target; same shape, any rank; 0 is perfect, 1 is the mean's error."""
    target = target.float()
    return (value.float() - target).pow(2).mean() / target.var().clamp_min(_TINY)


def soft_divergence(logits: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 KL(softmax(wanted / T) || softmax(logits / T))``, mean over the batch; both [N, K].

    Hinton, Vinyals, Dean 2015 (arXiv 1503.02531); T^2 keeps the size of its gradients apart from T.
    """
    own = functional.log_softmax(logits.float() / temperature, dim=1)
    soft = functional.log_softmax(wanted.float() / temperature, dim=1)
    return functional.kl_div(own, soft, log_target=True, reduction="batchmean") * temperature**2


def output_distance(outputs: Sequence[Tensor], wanted: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """Mean over a network's outputs, weighted evenly, of how far they are from the wanted ones.

    An output [N, K] with K of 2 or more is taken as class logits and compared by `soft_divergence`; any other (maps,
    boxes, embeddings of one value) by `normalised_error`.
    """
    parts = [
        soft_divergence(own, target, temperature) if is_logits(target) else normalised_error(own, target)
        for own, target in zip(outputs, wanted, strict=True)
    ]
    return torch.stack(parts).mean()


def is_logits(output: Tensor) -> bool:
    """Whether an output holds one value per class and image."""
    return output.ndim == 2 and output.shape[1] > 1
