"""Local distillation: each alternative learns, from the teacher's own input, to give the teacher's own output.

The loss of alternative b of units i..j is the normalised squared error ``|b(h_in) - h_out|^2 / Var(h_out)`` on the
frozen original's features h, so that units of different scale weigh the same. No alternative sees another one, all of
them learn from one pass of the teacher, and labels are not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from builder.distill.loop import Batch, BatchSource, LoopConfig, run_loop
from builder.elastify.supernet import Supernet
from builder.runlog import RunLog

__all__ = ["LocalConfig", "normalised_error", "train_local"]


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """Pace of the local stage."""

    loop: LoopConfig
    """Length, learning rate and regularisation."""


def normalised_error(value: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the variance of the target; both [N, C, H, W]; 0 is perfect, 1 is the mean's error."""
    return (value - target).pow(2).mean() / target.var().clamp_min(1e-8)


def train_local(supernet: Supernet, config: LocalConfig, source: BatchSource, saved: Path, log: RunLog) -> float:
    """Train every alternative alone; resumes from `saved`. Gives the mean error of the last epoch."""
    tasks = [
        (index, index + alternative.span - 1, supernet.alternative(index, value))
        for index, unit in enumerate(supernet.units)
        for value, alternative in enumerate(unit.alternatives)
        if value and not isinstance(supernet.alternative(index, value), nn.Identity)
    ]

    def step(batch: Batch, progress: float) -> float:
        with torch.no_grad():
            teacher = supernet.features(batch[0], supernet.space.default)
        total = 0.0
        for first, last, module in tasks:
            loss = normalised_error(module(teacher.entries[first]), teacher.exits[last])
            loss.backward()
            total += loss.item()
        return total / len(tasks)

    supernet.train()
    result = run_loop("local", supernet.bodies, supernet.fixed, config.loop, source, step, saved, log)
    supernet.eval()
    return result
