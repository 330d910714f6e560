"""Path training: whole subnets, drawn evenly over their cost, learn from the frozen original.

Each step draws a target cost uniformly between the cheapest subnet and the oracle and takes the drawn vector that comes
nearest to it (uniform draws over choices would crowd the middle). The loss is ``a CE + (1 - a) T^2 KL(p_T || p_s)`` on
the outputs plus a share of the normalised errors at the units' exits. The sandwich's largest subnet needs no step: it
is the frozen teacher itself. BN statistics follow the paths for most of the stage and rest at its end, so that the
weights settle on the statistics that inference will use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from builder.distill.local import normalised_error
from builder.distill.loop import Batch, BatchSource, LoopConfig, run_loop
from builder.elastify.supernet import Supernet
from builder.runlog import RunLog
from edge_runtime.gates import Gates

__all__ = ["PathConfig", "PathSampler", "train_paths"]

CANDIDATES = 24
FREEZE_STATISTICS_AT = 0.8


@dataclass(frozen=True, slots=True)
class PathConfig:
    """Pace and losses of the path stage."""

    loop: LoopConfig
    """Length, learning rate and regularisation."""

    paths_per_step: int = 2
    """Subnets trained on each batch."""

    temperature: float = 2.0
    """Of the softened outputs in the distillation term."""

    label_weight: float = 0.3
    """Share of the cross entropy with labels; without labels it is 0."""

    feature_weight: float = 0.1
    """Weight of the mean normalised error at the chosen alternatives' exits."""


class PathSampler:
    """Draws gate vectors evenly over multiply-accumulates, from torch's global generator."""

    def __init__(self, supernet: Supernet) -> None:
        self._supernet = supernet
        self._space = supernet.space
        self._full = supernet.macs(self._space.default)
        self._least = min(supernet.macs(self._draw(1.0)) for _ in range(256))

    def sample(self) -> Gates:
        """One gate vector whose cost is near a target drawn uniformly between the cheapest subnet and the oracle."""
        target = self._least + (self._full - self._least) * torch.rand(()).item()
        drawn = [self._draw(torch.rand(()).item()) for _ in range(CANDIDATES)]
        return min(drawn, key=lambda gates: abs(self._supernet.macs(gates) - target))

    def _draw(self, change: float) -> Gates:
        """Each unit leaves the original with probability `change`."""
        values = []
        for group in self._space.groups:
            leave = torch.rand(()).item() < change
            values.append(int(torch.randint(1, group.size, ())) if leave and group.size > 1 else 0)
        return self._space.gates(values)


def train_paths(supernet: Supernet, config: PathConfig, source: BatchSource, saved: Path, log: RunLog) -> float:
    """Train subnets end to end; resumes from `saved`. Gives the mean loss of the last epoch."""
    sampler = PathSampler(supernet)

    def step(batch: Batch, progress: float) -> float:
        _set_statistics(supernet.bodies, moving=progress < FREEZE_STATISTICS_AT)
        images, labels = batch
        with torch.no_grad():
            teacher = supernet.features(images, supernet.space.default)
        total = 0.0
        for _ in range(config.paths_per_step):
            gates = sampler.sample()
            loss = _path_loss(supernet.features(images, gates), teacher, labels, config) / config.paths_per_step
            if loss.requires_grad:  # the drawn path may be the frozen original itself
                loss.backward()
            total += loss.item()
        return total

    supernet.train()
    result = run_loop("paths", supernet.bodies, config.loop, source, step, saved, log)
    supernet.eval()
    return result


def _set_statistics(bodies: nn.Module, *, moving: bool) -> None:
    for module in bodies.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(moving)


def _path_loss(
    student: Sequence[Tensor | None], teacher: Sequence[Tensor | None], labels: Tensor | None, config: PathConfig
) -> Tensor:
    logits, wanted = student[-1], teacher[-1]
    soft = nn.functional.log_softmax(wanted / config.temperature, dim=1)
    own = nn.functional.log_softmax(logits / config.temperature, dim=1)
    distance = nn.functional.kl_div(own, soft, log_target=True, reduction="batchmean") * config.temperature**2
    loss = distance
    if labels is not None:
        loss = (1 - config.label_weight) * distance + config.label_weight * nn.functional.cross_entropy(logits, labels)
    errors = [
        normalised_error(value, target)
        for value, target in zip(student[:-1], teacher[:-1], strict=True)
        if value is not None and target is not None and value.requires_grad
    ]
    return loss + config.feature_weight * torch.stack(errors).mean() if errors else loss
