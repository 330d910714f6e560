"""Path training: whole subnets, drawn evenly over their cost, learn from the frozen original.

Each step draws a target cost uniformly between the cheapest subnet and the oracle (uniform draws over choices would
crowd the middle). Most subnets at that cost are poor and no search will ever choose them, so a large share of the paths
is drawn near the best that the prior knows; the others are drawn blindly, so that no alternative is forgotten and a
wrong prior can be mended on the device. The loss is ``a CE + (1 - a) T^2 KL(p_T || p_s)`` on
the outputs plus a share of the normalised errors at the units' exits. The sandwich's largest subnet needs no step: it
is the frozen teacher itself. BN statistics follow the paths for most of the stage and rest at its end, so that the
weights settle on the statistics that inference will use.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from builder.distill.local import normalised_error
from builder.distill.loop import Batch, BatchSource, LoopConfig, run_loop
from builder.distill.prior import measure_prior
from builder.elastify.supernet import Features, Supernet
from builder.runlog import RunLog
from edge_runtime.additive import AdditiveCost, Plan, fastest
from edge_runtime.gates import Gates

__all__ = ["PathConfig", "PathSampler", "train_paths"]

CANDIDATES = 24
LEVELS = 24
GUIDED_SHARE = 0.7
COLDEST, HOTTEST = 0.003, 0.3
"""Range of the log-uniform temperature of guided draws, in units of `Plan.scale`."""

PRIOR_BATCHES = 2
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
    """Draws gate vectors evenly over multiply-accumulates, from torch's global generator.

    With a `damage` (the prior as an additive cost) a share of the draws is a random near-optimal plan under the target.
    """

    def __init__(self, supernet: Supernet, damage: AdditiveCost | None = None) -> None:
        self._supernet = supernet
        self._space = supernet.space
        cost = _macs(supernet)
        self._full, self._least = cost(self._space.default), cost(fastest(cost))
        self._plans = [] if damage is None else [Plan(cost, damage, limit) for limit in self._levels()]

    def sample(self) -> Gates:
        """One gate vector whose cost is near a target drawn uniformly between the cheapest subnet and the oracle."""
        if self._plans and torch.rand(()).item() < GUIDED_SHARE:
            return self._guided()
        target = self._least + (self._full - self._least) * torch.rand(()).item()
        drawn = [self._blind(torch.rand(()).item()) for _ in range(CANDIDATES)]
        return min(drawn, key=lambda gates: abs(self._supernet.macs(gates) - target))

    def _levels(self) -> list[float]:
        step = (self._full - self._least) / LEVELS
        return [self._least + step * (level + 1) for level in range(LEVELS)]

    def _guided(self) -> Gates:
        plan = self._plans[int(torch.randint(len(self._plans), ()))]
        share = torch.rand(()).item()
        temperature = plan.scale * COLDEST ** (1 - share) * HOTTEST**share
        return plan.draw(random.Random(int(torch.randint(2**31, ()))), temperature)

    def _blind(self, change: float) -> Gates:
        """Each unit leaves the original with probability `change`."""
        values = []
        for group in self._space.groups:
            leave = torch.rand(()).item() < change
            values.append(int(torch.randint(1, group.size, ())) if leave and group.size > 1 else 0)
        return self._space.gates(values)


def _macs(supernet: Supernet) -> AdditiveCost:
    entries = tuple(tuple(float(a.macs) for a in unit.alternatives) for unit in supernet.units)
    default = supernet.space.default
    base = supernet.macs(default) - sum(row[0] for row in entries)
    return AdditiveCost(supernet.space, base, entries)


def train_paths(supernet: Supernet, config: PathConfig, source: BatchSource, saved: Path, log: RunLog) -> float:
    """Train subnets end to end; resumes from `saved`. Gives the mean loss of the last epoch."""
    # Measured on the result of the local stage, before a checkpoint is read: the same after every resume.
    images = torch.cat([images for images, _ in islice(source(0, 0), PRIOR_BATCHES)])
    damage = AdditiveCost.damage(supernet.space, measure_prior(supernet, images))
    sampler = PathSampler(supernet, damage)

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
    result = run_loop("paths", supernet.bodies, supernet.fixed, config.loop, source, step, saved, log)
    supernet.eval()
    return result


def _set_statistics(bodies: nn.Module, *, moving: bool) -> None:
    for module in bodies.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(moving)


def _path_loss(student: Features, teacher: Features, labels: Tensor | None, config: PathConfig) -> Tensor:
    logits, wanted = student.outputs[0], teacher.outputs[0]
    soft = nn.functional.log_softmax(wanted / config.temperature, dim=1)
    own = nn.functional.log_softmax(logits / config.temperature, dim=1)
    distance = nn.functional.kl_div(own, soft, log_target=True, reduction="batchmean") * config.temperature**2
    loss = distance
    if labels is not None:
        loss = (1 - config.label_weight) * distance + config.label_weight * nn.functional.cross_entropy(logits, labels)
    errors = [
        normalised_error(value, target)
        for value, target in zip(student.exits, teacher.exits, strict=True)
        if value is not None and target is not None and value.requires_grad
    ]
    return loss + config.feature_weight * torch.stack(errors).mean() if errors else loss
