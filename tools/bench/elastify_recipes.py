"""How each arm trains: AdaptiveNet's two stages, cross entropy alone, distillation of one network, and ours.

Ours is what `nnf-build train` does by default. The others run on the same loop, so that they are resumable and guarded
in the same way; what they minimise, and what they draw, is their own.
"""

# ruff: noqa: TID251 - a bench may use torch and the builder; only the runtime must not

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads
from elastify_pace import Stage, pace
from elastify_supernets import Sliced
from torch import Tensor

from builder.distill import PathConfig, train_local, train_paths
from builder.distill.losses import normalised_error, output_distance
from builder.elastify import Supernet
from builder.project.plan import DEFAULT_BATCH, LOCAL_SHARE, TrainSettings, scaled_rate, stage_configs
from builder.runlog import RunLog
from builder.training import Batch, BatchSource, Compute, identity_of, run_loop
from builder.training.loop import Backward, Step
from edge_runtime.errors import UsageError
from edge_runtime.gates import Gates, GateSpace

__all__ = ["Training", "adaptivenet_stages", "naive_stages", "our_stages", "purpose_stages"]

DISTIL_SHARE = 0.29
"""Of AdaptiveNet's 12.94 GPU hours for ResNet-50, 3.76 were its first stage."""

COPY_RATE = 1e-3
"""For branches that begin as copies. The paper's 3.9e-4 is for 60 epochs of ImageNet, too low for a few minutes."""

SLICED_RATE, SLICED_EMA = 1e-3, 0.999


@dataclass(frozen=True, slots=True)
class Training:
    """What all arms of a work folder have in common."""

    minutes: float
    """Of each arm, above 0."""

    batch_size: int = DEFAULT_BATCH
    """Images of one step, 2 or more."""

    compute: Compute = field(default_factory=Compute)
    """Where it trains, and in which precision."""

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.batch_size < 2:
            raise UsageError(f"an arm cannot train for {self.minutes:g} minutes on batches of {self.batch_size}")

    def rate(self, rate: float) -> float:
        """A learning rate of the default batch size, for this one."""
        return scaled_rate(rate, self.batch_size)


def our_stages(supernet: Supernet, batches: int, seed: int, training: Training, *, labels: bool) -> tuple[Stage, ...]:
    """Local stage, then paths, with the defaults of `nnf-build train`."""

    def local(steps: int, source: BatchSource, saved: Path | None, log: RunLog) -> float:
        config, _ = stage_configs(TrainSettings(steps, 1, "", training.batch_size, labels=labels), batches, seed)
        return train_local(supernet, config, source, saved, log, compute=training.compute)

    def paths(steps: int, source: BatchSource, saved: Path | None, log: RunLog) -> float:
        _, config = stage_configs(TrainSettings(1, steps, "", training.batch_size, labels=labels), batches, seed)
        return train_paths(supernet, config, source, saved, log, compute=training.compute)

    return Stage("local", LOCAL_SHARE, local), Stage("paths", 1 - LOCAL_SHARE, paths)


def adaptivenet_stages(supernet: Supernet, batches: int, seed: int, training: Training) -> tuple[Stage, ...]:
    """Squared error along one random path, then cross entropy along one random path; only branches are trained.

    In the first stage the student has its own upstream features, and the error is that of the drawn branches' outputs
    from the teacher's at the same depth, not normalised. (Wen et al. 2023, arXiv 2303.07129.)
    """

    def distil(batch: Batch, progress: float, backward: Backward) -> float:
        gates = _uniform(supernet.space)
        with torch.no_grad():
            teacher = supernet.features(batch[0], supernet.space.default)
        student = supernet.features(batch[0], gates)
        errors = [F.mse_loss(student.exits[last], teacher.exits[last]) for last in _branch_ends(gates)]
        if not errors:
            return 0.0
        loss = torch.stack(errors).mean()
        backward(loss)
        return loss.item()

    return (
        _supernet_stage("distil", DISTIL_SHARE, supernet, distil, batches, seed, training),
        _supernet_stage("cross-entropy", 1 - DISTIL_SHARE, supernet, _cross_entropy(supernet), batches, seed, training),
    )


def naive_stages(supernet: Supernet, batches: int, seed: int, training: Training) -> tuple[Stage, ...]:
    """Cross entropy along random paths from the first step on."""
    return (_supernet_stage("cross-entropy", 1.0, supernet, _cross_entropy(supernet), batches, seed, training),)


def purpose_stages(student: Sliced, teacher: Sliced, batches: int, seed: int, training: Training) -> tuple[Stage, ...]:
    """One network, all of its weights, from the oracle with the losses of our path stage."""

    def train(steps: int, source: BatchSource, saved: Path | None, log: RunLog) -> float:
        rate = training.rate(SLICED_RATE)
        config = PathConfig(pace(steps, batches, learning_rate=rate, seed=seed, ema_decay=SLICED_EMA))

        def step(batch: Batch, progress: float, backward: Backward) -> float:
            with torch.no_grad():
                wanted = teacher.values(batch[0])
            loss = _distillation(student.values(batch[0]), wanted, batch[1], student.narrowed, config)
            backward(loss)
            return loss.item()

        student.train()
        belongs_to = identity_of(config, teacher)
        loss = run_loop("purpose", student, belongs_to, config.loop, source, step, saved, log, compute=training.compute)
        student.eval()
        return loss

    return (Stage("purpose", 1.0, train),)


def _distillation(
    own: list[Tensor], wanted: list[Tensor], labels: Tensor, narrowed: tuple[int, ...], config: PathConfig
) -> Tensor:
    distance = output_distance(own[-1:], wanted[-1:], config.temperature)
    entropy = F.cross_entropy(own[-1], labels)
    errors = torch.stack([normalised_error(own[index], wanted[index]) for index in narrowed])
    share = config.label_weight
    return (1 - share) * distance + share * entropy + config.feature_weight * errors.mean()


def _cross_entropy(supernet: Supernet) -> Step:
    def step(batch: Batch, progress: float, backward: Backward) -> float:
        loss = F.cross_entropy(supernet.features(batch[0], _uniform(supernet.space)).outputs[0], batch[1])
        if loss.requires_grad:  # the drawn path may be the frozen original itself
            backward(loss)
        return loss.item()

    return step


def _supernet_stage(
    name: str, share: float, supernet: Supernet, step: Step, batches: int, seed: int, training: Training
) -> Stage:
    """A stage that trains the branches; weights are kept as they are at its end, as the paper does."""

    def train(steps: int, source: BatchSource, saved: Path | None, log: RunLog) -> float:
        config = pace(steps, batches, learning_rate=training.rate(COPY_RATE), seed=seed, ema_decay=None)
        supernet.train()
        belongs_to = identity_of((name, config), supernet.fixed)
        loss = run_loop(name, supernet.bodies, belongs_to, config, source, step, saved, log, compute=training.compute)
        supernet.eval()
        return loss

    return Stage(name, share, train)


def _uniform(space: GateSpace) -> Gates:
    """Every choice with the same probability, from torch's generator, whose state is in the checkpoint."""
    return space.gates([int(torch.randint(group.size, ())) for group in space.groups])


def _branch_ends(gates: Gates) -> list[int]:
    """The last unit of each alternative that is not the original."""
    rows = zip(gates.space.groups, gates.values, gates.active, strict=True)
    return [
        index + group.spans[int(value)] - 1 for index, (group, value, active) in enumerate(rows) if active and value
    ]
