"""Path training: whole subnets, drawn evenly over their cost, learn from the frozen original.

Each step draws a target cost uniformly between the cheapest subnet and the oracle (uniform draws over choices would
crowd the middle), and later ever more of what a search might choose (see `sampler`). The loss is ``a CE + (1 - a) D``,
with D the mean over the outputs of the distance from the oracle's, plus a share of the normalised errors at the units'
exits. The sandwich's largest subnet needs no step: it is the frozen teacher itself. BN statistics follow the paths for
most of the stage and rest at its end, so that the weights settle on the statistics that inference will use.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from builder.distill.losses import is_logits, normalised_error, output_distance
from builder.distill.prior import measure_prior
from builder.distill.sampler import PathSampler, checked_cost, schedule
from builder.elastify import Features, Supernet, with_folded_originals
from builder.runlog import RunLog
from builder.training import Batch, BatchSource, Compute, LoopConfig, identity_of, run_loop
from builder.training.loop import Backward
from edge_runtime.additive import AdditiveCost
from edge_runtime.errors import UsageError

__all__ = ["PathConfig", "train_paths"]

PRIOR_BATCHES = 2
FREEZE_STATISTICS_AT = 0.8


@dataclass(frozen=True, slots=True)
class PathConfig:
    """Pace and losses of the path stage. Raises `UsageError` when built invalid."""

    loop: LoopConfig
    """Length, learning rate and regularisation."""

    paths_per_step: int = 2
    """Subnets trained on each batch, at least 1."""

    temperature: float = 2.0
    """Of the softened outputs in the distillation term, above 0."""

    label_weight: float = 0.3
    """Share of the cross entropy with labels, in [0, 1]; without labels it is 0."""

    feature_weight: float = 0.1
    """Weight of the mean normalised error at the chosen alternatives' exits, 0 or more."""

    def __post_init__(self) -> None:
        if self.paths_per_step < 1 or not (self.temperature > 0 and self.feature_weight >= 0):
            raise UsageError(
                f"a path stage takes at least one path, a temperature above 0 and weights of 0 or more: {self}"
            )
        if not 0 <= self.label_weight <= 1:
            raise UsageError(f"the share of the labels is in [0, 1], got {self.label_weight}")


def train_paths(
    supernet: Supernet,
    config: PathConfig,
    source: BatchSource,
    saved: Path | None,
    log: RunLog,
    *,
    compute: Compute | None = None,
    latency: AdditiveCost | None = None,
) -> float:
    """Train subnets end to end; resumes from `saved`. Gives the mean loss of the last epoch.

    Args:
        supernet: after the local stage, on the device of `compute`.
        config: pace and losses.
        source: batches, of this rank's images where there are several ranks; labels are optional.
        saved: checkpoint of this stage; None keeps nothing.
        log: where epochs are written.
        compute: device, precision and ranks.
        latency: a device's latency table for this supernet: paths are even over it. Without one they are even over
            multiply-accumulates.

    Raises:
        UsageError: the latency table is of another supernet, or the source gives nothing.
        StateError: the checkpoint is of another run.
        BuildError: the loss jumped too often.
    """
    compute = compute or Compute()
    if not supernet.learns:
        return 0.0
    sampler = _sampler(supernet, source, compute, latency)
    quick = with_folded_originals(supernet)

    def step(batch: Batch, progress: float, backward: Backward) -> float:
        _set_statistics(supernet.bodies, moving=progress < FREEZE_STATISTICS_AT)
        images, labels = batch
        with torch.no_grad():
            teacher = quick.features(images, quick.space.default)
        total = torch.zeros((), device=images.device)  # read once: each reading waits for the device
        for _ in range(config.paths_per_step):
            gates = sampler.sample(progress)
            loss = _path_loss(quick.features(images, gates), teacher, labels, config) / config.paths_per_step
            if loss.requires_grad:  # the drawn path may be the frozen original itself
                backward(loss)
            total += loss.detach()
        return total.item()

    supernet.train()
    decided = schedule(), PRIOR_BATCHES, FREEZE_STATISTICS_AT
    belongs_to = identity_of((config, latency and latency.entries, decided), supernet.fixed)
    result = run_loop("paths", supernet.bodies, belongs_to, config.loop, source, step, saved, log, compute=compute)
    supernet.eval()
    return result


def _sampler(supernet: Supernet, source: BatchSource, compute: Compute, latency: AdditiveCost | None) -> PathSampler:
    """With the prior after the local stage, measured before a checkpoint is read: the same after every resume."""
    batches = [compute.place(batch)[0] for batch in islice(source(0, 0), PRIOR_BATCHES)]
    if not batches:
        raise UsageError("the batch source gives nothing for epoch 0", hint="give it more images")
    # Rank 0's, as the others have seen other images.
    prior = compute.ranks.share(measure_prior(supernet, torch.cat(batches)))
    return PathSampler(checked_cost(supernet, latency), AdditiveCost.damage(supernet.space, prior))


def _set_statistics(bodies: nn.Module, *, moving: bool) -> None:
    for module in bodies.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(moving)


def _path_loss(student: Features, teacher: Features, labels: Tensor | None, config: PathConfig) -> Tensor:
    loss = output_distance(student.outputs, teacher.outputs, config.temperature)
    if labels is not None and is_logits(student.outputs[0]):
        entropy = nn.functional.cross_entropy(student.outputs[0].float(), labels)
        loss = (1 - config.label_weight) * loss + config.label_weight * entropy
    errors = [
        normalised_error(value, target)
        for value, target in zip(student.exits, teacher.exits, strict=True)
        if value is not None and target is not None and value.requires_grad
    ]
    return loss + config.feature_weight * torch.stack(errors).mean() if errors else loss
