"""How long and how fast a stage is trained, and what it is fed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from edge_runtime.errors import UsageError

__all__ = ["Batch", "BatchSource", "LoopConfig"]

Batch = tuple[Tensor, Tensor | None]
"""Preprocessed images float32 [N, C, H, W] and their labels int64 [N], None where unlabelled."""

BatchSource = Callable[[int, int], Iterable[Batch]]
"""Epoch and number of its first batch to the rest of that epoch's batches; the same numbers give the same batches.

Epochs beyond the planned ones may be asked for: after a loss jump the loop goes on with another part of the data.
"""


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Length and pace of one stage. Raises `UsageError` when built invalid."""

    epochs: int
    """Passes over the batch source, at least 1."""

    steps_per_epoch: int
    """Batches in each pass, at least 1."""

    learning_rate: float
    """Peak of the schedule, above 0: linear warm-up, then a half cosine down to zero."""

    weight_decay: float = 1e-4
    """Decoupled (AdamW), 0 or more; on weights of two and more dimensions only."""

    clip_norm: float = 5.0
    """Largest gradient norm, above 0; infinite for none."""

    warmup_steps: int = 20
    """Steps of the linear warm-up, 0 or more."""

    ema_decay: float | None = 0.999
    """Highest decay per step of the moving average that is kept as the result, in (0, 1); None keeps the last weights.

    The decay of step t is min(ema_decay, (1 + t) / (10 + t)), so that a short run is not an average over its start.
    """

    seed: int = 0
    """Of everything random in the steps, 0 or more; the batch source has its own."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.steps_per_epoch) < 1 or not 0 < self.learning_rate < math.inf:
            raise UsageError(f"a training stage needs epochs, steps and a learning rate above 0, got {self}")
        if not (self.weight_decay >= 0 and self.clip_norm > 0 and self.warmup_steps >= 0 and self.seed >= 0):
            raise UsageError(f"a decay, a warm-up and a seed are 0 or more, a clipping norm is above 0, got {self}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UsageError(f"the moving average's decay is in (0, 1), got {self.ema_decay}")

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.epochs * self.steps_per_epoch

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        part = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * part))
