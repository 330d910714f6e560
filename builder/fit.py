"""Supervised training of one network, on the loop that all training shares: resumable anywhere, with the same result.

AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with linear warm-up and a cosine; on request an exponential moving
average of the weights and BatchNorm statistics, which is what is kept then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads
from torch import Tensor, nn

from builder.data import Augmentation, ImageBatches, Pixels
from builder.runlog import RunLog
from builder.training import Batch, Compute, LoopConfig, identity_of, run_loop
from builder.training.loop import Backward
from edge_runtime.errors import UsageError

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
    """Highest decay per step of the moving average; None: the last weights are kept."""

    augmentation: Augmentation | None = None
    channels_last: bool = True
    """Memory layout of the convolutions; faster on CPUs for depthwise networks."""

    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or self.seed < 0:
            raise UsageError("a fit takes at least 1 epoch, batches of 2 and a seed of 0")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"a fit takes a label smoothing in [0, 1), got {self.label_smoothing}")
        self.loop(1)  # checks the rest

    def loop(self, steps_per_epoch: int) -> LoopConfig:
        """The pace of the loop for epochs of so many batches."""
        return LoopConfig(
            epochs=self.epochs,
            steps_per_epoch=steps_per_epoch,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            clip_norm=math.inf,
            warmup_steps=max(int(self.epochs * steps_per_epoch * _WARMUP_PART), 1),
            ema_decay=self.ema_decay,
            seed=self.seed,
        )


def fit(
    model: nn.Module,
    train: Pixels,
    config: FitConfig,
    *,
    log: RunLog,
    validation: Pixels | None = None,
    checkpoint_path: Path | None = None,
    compute: Compute | None = None,
) -> dict[str, float]:
    """Train `model` in place and leave it in eval mode; returns figures (steps, mean loss of the last epoch).

    With `checkpoint_path` the run is kept there and goes on from what is there; the accuracy on `validation` is logged
    after each epoch.

    Raises:
        StateError: the checkpoint is damaged or of other settings.
        BuildError: the loss jumped too often.
    """
    compute = compute or Compute(channels_last=config.channels_last)
    compute.place_module(model)
    source = ImageBatches(train, config.batch_size, config.seed, compute.ranks, config.augmentation, compute.device)

    def step(batch: Batch, progress: float, backward: Backward) -> float:
        logits = model(batch[0]).float()
        loss = F.cross_entropy(logits, batch[1], label_smoothing=config.label_smoothing)
        backward(loss)
        return loss.item()

    def figures() -> dict[str, float]:
        return {} if validation is None else {"validation_accuracy": accuracy(model, validation)}

    model.train()
    loop = config.loop(len(source))
    belongs_to = identity_of((config, len(train)), nn.Identity())
    loss = run_loop(
        "fit", model, belongs_to, loop, source, step, checkpoint_path, log, compute=compute, epoch_figures=figures
    )
    model.eval()
    return {"steps": loop.steps, "loss": loss}


@torch.no_grad()
def logits_of(model: nn.Module, images: Pixels, *, batch_size: int = 128) -> Tensor:
    """Logits float32 [N, classes] of all images, in eval mode; the model's mode is left as it was."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    slices = (slice(start, start + batch_size) for start in range(0, len(images), batch_size))
    parts = [model(images.inputs(part).to(device)).float().cpu() for part in slices]
    model.train(was_training)
    return torch.cat(parts)


def accuracy(model: nn.Module, images: Pixels) -> float:
    """Part of `images` that the model labels right, in [0, 1]."""
    right = logits_of(model, images).argmax(1) == torch.from_numpy(images.labels)
    return right.float().mean().item()
