"""Local distillation: each alternative learns, from the teacher's own input, to give the teacher's own output.

The loss of alternative b of units i..j is the normalised squared error ``|b(h_in) - h_out|^2 / Var(h_out)`` on the
frozen original's features h, so that units of different scale weigh the same. No alternative sees another one, all of
them learn from one pass of the teacher, and labels are not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from builder.distill.losses import normalised_error
from builder.elastify import Supernet, with_folded_originals
from builder.runlog import RunLog
from builder.training import Batch, BatchSource, Compute, LoopConfig, identity_of, run_loop
from builder.training.loop import Backward

__all__ = ["LocalConfig", "train_local"]


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """Pace of the local stage."""

    loop: LoopConfig
    """Length, learning rate and regularisation."""


def train_local(
    supernet: Supernet,
    config: LocalConfig,
    source: BatchSource,
    saved: Path | None,
    log: RunLog,
    *,
    compute: Compute | None = None,
) -> float:
    """Train every alternative alone; resumes from `saved`. Gives the mean error of the last epoch.

    Args:
        supernet: on the device of `compute`.
        config: pace.
        source: batches, of this rank's images where there are several ranks; labels are not used.
        saved: checkpoint of this stage; None keeps nothing.
        log: where epochs are written.
        compute: device, precision and ranks.

    Raises:
        StateError: the checkpoint is of another run.
        UsageError: the source gives nothing.
        BuildError: the loss jumped too often.
    """
    tasks = [
        (index, index + alternative.span - 1, supernet.alternative(index, value))
        for index, unit in enumerate(supernet.units)
        for value, alternative in enumerate(unit.alternatives)
        if value and not isinstance(supernet.alternative(index, value), nn.Identity)
    ]

    if not tasks:  # skips alone learn nothing
        return 0.0

    quick = with_folded_originals(supernet)

    def step(batch: Batch, progress: float, backward: Backward) -> float:
        with torch.no_grad():
            teacher = quick.features(batch[0], quick.space.default)
        total = torch.zeros((), device=batch[0].device)  # read once: each reading waits for the device
        for first, last, module in tasks:
            loss = normalised_error(module(teacher.entries[first]), teacher.exits[last])
            backward(loss)
            total += loss.detach()
        return total.item() / len(tasks)

    supernet.train()
    belongs_to = identity_of(config, supernet.fixed)
    result = run_loop("local", supernet.bodies, belongs_to, config.loop, source, step, saved, log, compute=compute)
    supernet.eval()
    return result
