"""Supervised training of one network, resumable at any moment with the same result as without the interruption.

All randomness is derived from (seed, epoch, batch) or kept in the checkpoint, so where a run is cut changes nothing.
AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with linear warm-up and a cosine; on request an exponential moving
average of the weights and BatchNorm statistics, which is what is kept then.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads
from torch import Tensor, nn

from builder import checkpoint
from builder.images import Augmentation, ImageSet, epoch_batches
from builder.runlog import Progress, RunLog
from edge_runtime.errors import StateError, UsageError

__all__ = ["FitConfig", "accuracy", "fit", "logits_of"]

_WARMUP_PART = 0.1


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How to train. Raises `UsageError` when built invalid."""

    epochs: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    """Highest rate, reached after the warm-up (the first tenth of all steps)."""

    weight_decay: float = 0.02
    """On weights of two and more dimensions only."""

    label_smoothing: float = 0.0
    """In [0, 1)."""

    ema_decay: float | None = None
    """Decay per step of the moving average; None: the last weights are kept."""

    augmentation: Augmentation | None = None
    channels_last: bool = True
    """Memory layout of the convolutions; faster on CPUs for depthwise networks."""

    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or self.seed < 0:
            raise UsageError("a fit takes at least 1 epoch, batches of 2 and a seed of 0")
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and 0 <= self.label_smoothing < 1):
            raise UsageError("a fit takes a rate above 0, a decay of 0 or more and a smoothing in [0, 1)")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UsageError(f"the moving average's decay is in (0, 1), got {self.ema_decay}")


class _Run:
    """The moving parts of one fit: what a checkpoint holds."""

    def __init__(self, model: nn.Module, config: FitConfig, steps: int) -> None:
        self.model, self.config, self.steps = model, config, steps
        parameters = [p for p in model.parameters() if p.requires_grad]
        decayed = [p for p in parameters if p.ndim > 1]
        plain = [p for p in parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        self.average = _copies(model) if config.ema_decay is not None else None
        self.step = 0
        self.seconds = 0.0
        torch.manual_seed(config.seed)

    def state(self) -> dict[str, Any]:
        return {
            "config": _as_plain(self.config),
            "steps": self.steps,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "rng": checkpoint.rng_state(),
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        if state.get("config") != _as_plain(self.config) or state.get("steps") != self.steps:
            raise StateError(
                f"checkpoint {path} is of a run with other settings or data",
                hint="delete it to begin again, or run with the settings it was made with",
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.step, self.seconds = state["step"], state["seconds"]
        checkpoint.restore_rng(state["rng"])

    def update(self, inputs: Tensor, labels: Tensor) -> float:
        """One step of gradient descent; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * _rate(self.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(inputs), labels, label_smoothing=self.config.label_smoothing)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        if self.average is not None and self.config.ema_decay is not None:
            _blend(self.average, self.model, min(self.config.ema_decay, self.step / (self.step + 9)))
        return loss.item()


def fit(
    model: nn.Module,
    train: ImageSet,
    config: FitConfig,
    *,
    log: RunLog,
    validation: ImageSet | None = None,
    checkpoint_path: Path | None = None,
    checkpoint_every_s: float = 20.0,
) -> dict[str, float]:
    """Train `model` in place and leave it in eval mode; returns figures (steps, seconds, last loss, accuracies).

    With `checkpoint_path` the run is kept there every `checkpoint_every_s` seconds and at the end of each epoch, and
    goes on from what is there. Raises `StateError` when that file is damaged or of other settings.
    """
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    per_epoch = max(len(train) // config.batch_size, 1)
    run = _Run(model, config, per_epoch * config.epochs)
    if checkpoint_path is not None and (state := checkpoint.load(checkpoint_path)) is not None:
        run.restore(state, checkpoint_path)
    loss = math.nan
    with log.progress("fit", run.steps, done=run.step) as bar:
        while run.step < run.steps:
            epoch, first = divmod(run.step, per_epoch)
            loss = _train_epoch(run, train, epoch, first, bar, checkpoint_path, checkpoint_every_s)
            figures = {"epoch": epoch + 1, "loss": loss, "seconds": round(run.seconds, 2)}
            if validation is not None:
                figures["validation_accuracy"] = _accuracy_now(run, validation)
            log.event("fit.epoch", figures)
    if run.average is not None:
        model.load_state_dict(run.average)
    model.eval()
    return {"steps": run.steps, "seconds": round(run.seconds, 2), "loss": loss}


def _train_epoch(
    run: _Run, train: ImageSet, epoch: int, first: int, bar: Progress, path: Path | None, every_s: float
) -> float:
    """The rest of an epoch from batch `first` on; returns the mean loss of its steps."""
    config, losses = run.config, []
    run.model.train()
    began_ns = saved_ns = time.perf_counter_ns()
    before_s = run.seconds
    batches = epoch_batches(
        train, config.batch_size, seed=config.seed, epoch=epoch, augmentation=config.augmentation, first=first
    )
    for inputs, labels in batches:
        if config.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        losses.append(run.update(inputs, labels))
        now_ns = time.perf_counter_ns()
        run.seconds = before_s + (now_ns - began_ns) / 1e9
        bar.advance(1, f"epoch {epoch + 1}/{config.epochs} loss {losses[-1]:.3f}")
        if path is not None and (now_ns - saved_ns) / 1e9 >= every_s:
            checkpoint.save(path, run.state())
            saved_ns = now_ns
    if path is not None:
        checkpoint.save(path, run.state())
    return sum(losses) / len(losses) if losses else math.nan


def _accuracy_now(run: _Run, images: ImageSet) -> float:
    """Accuracy of what would be kept if the run ended here."""
    if run.average is None:
        return accuracy(run.model, images)
    kept = _copies(run.model)
    run.model.load_state_dict(run.average)
    result = accuracy(run.model, images)
    run.model.load_state_dict(kept)
    return result


@torch.no_grad()
def logits_of(model: nn.Module, images: ImageSet, *, batch_size: int = 128) -> Tensor:
    """Logits float32 [N, classes] of all images, in eval mode; the model's mode is left as it was."""
    was_training = model.training
    model.eval()
    parts = [model(images.inputs(slice(start, start + batch_size))) for start in range(0, len(images), batch_size)]
    model.train(was_training)
    return torch.cat(parts)


def accuracy(model: nn.Module, images: ImageSet) -> float:
    """Part of `images` that the model labels right, in [0, 1]."""
    right = logits_of(model, images).argmax(1) == torch.from_numpy(images.labels)
    return right.float().mean().item()


def _rate(step: int, steps: int) -> float:
    """Part of the highest learning rate at `step`: linear up over the first tenth, then a cosine down to 0."""
    warmup = max(int(steps * _WARMUP_PART), 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def _blend(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1.0 - decay)
        else:
            average[name].copy_(value)


def _as_plain(config: FitConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)
