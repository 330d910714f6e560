"""One resumable training loop for every stage: a step function, a batch source, a checkpoint.

Everything random in a step comes from torch's global generator, whose state is in the checkpoint, and batches are a
function of the epoch alone. So a run that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from builder import checkpoint
from builder.runlog import RunLog
from edge_runtime.errors import StateError, UsageError

__all__ = ["Batch", "BatchSource", "LoopConfig", "run_loop"]

Batch = tuple[Tensor, Tensor | None]
"""Preprocessed images float32 [N, C, H, W] and their labels int64 [N], None where unlabelled."""

BatchSource = Callable[[int, int], Iterable[Batch]]
"""Epoch and number of its first batch to the rest of that epoch's batches; the same numbers give the same batches."""

CHECKPOINT_EVERY_S = 20.0
WARMUP_STEPS = 20


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Length and pace of one stage."""

    epochs: int
    """Passes over the batch source."""

    steps_per_epoch: int
    """Batches in each pass."""

    learning_rate: float
    """Peak of the schedule: linear warm-up, then a half cosine down to zero."""

    weight_decay: float = 1e-4
    """Decoupled (AdamW)."""

    clip_norm: float = 5.0
    """Largest gradient norm."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.steps_per_epoch) < 1 or self.learning_rate <= 0:
            raise UsageError(f"a training stage needs epochs, steps and a learning rate above 0, got {self}")

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.epochs * self.steps_per_epoch


Step = Callable[[Batch, float], float]
"""Runs forward and backward for one batch at a progress in [0, 1); gradients stay in the parameters; gives the loss."""


def run_loop(
    name: str,
    trained: nn.Module,
    frozen: nn.Module,
    config: LoopConfig,
    source: BatchSource,
    step: Step,
    saved: Path,
    log: RunLog,
) -> float:
    """Train the parameters of `trained` that require gradients; gives the mean loss of the last epoch.

    Args:
        name: the stage, for the progress bar and the log.
        trained: holds everything that training changes (parameters and BN statistics).
        frozen: the oracle's own pieces; a checkpoint that was made with others is refused.
        config: length and pace.
        source: batches by epoch.
        step: forward and backward of one batch.
        saved: checkpoint file; read when it exists, and kept at the end so that the stage is not run twice.
        log: where epochs are written.

    Raises:
        StateError: the checkpoint is damaged, or of another oracle, supernet or other settings.
        UsageError: the source gives no batches.
    """
    optimizer = torch.optim.AdamW(
        [p for p in trained.parameters() if p.requires_grad], lr=config.learning_rate, weight_decay=config.weight_decay
    )
    identity = _identity(config, frozen)
    done, losses = _resume(saved, trained, optimizer, identity)
    saved_at = time.monotonic()
    with log.progress(name, config.steps, done=done) as bar:
        while done < config.steps:
            epoch, first = divmod(done, config.steps_per_epoch)
            before = done
            for batch in islice(source(epoch, first), config.steps_per_epoch - first):
                _set_rate(optimizer, config, done)
                optimizer.zero_grad(set_to_none=True)
                losses.append(step(batch, done / config.steps))
                nn.utils.clip_grad_norm_(trained.parameters(), config.clip_norm)
                optimizer.step()
                done += 1
                bar.advance(note=f"loss {losses[-1]:.4f}")
                if time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
                    _save(saved, trained, optimizer, done, losses, identity)
                    saved_at = time.monotonic()
            if done == before:
                raise UsageError(f"the batch source gives nothing for epoch {epoch}", hint="give it more images")
            losses = losses[-config.steps_per_epoch :]
            log.event(f"{name}.epoch", {"epoch": epoch, "loss": sum(losses) / len(losses)})
    _save(saved, trained, optimizer, done, losses, identity)
    return sum(losses) / max(1, len(losses))


def _set_rate(optimizer: torch.optim.Optimizer, config: LoopConfig, done: int) -> None:
    warm = min(1.0, (done + 1) / WARMUP_STEPS)
    rate = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done / config.steps))
    for group in optimizer.param_groups:
        group["lr"] = rate


def _identity(config: LoopConfig, frozen: nn.Module) -> str:
    """What a checkpoint belongs to: the settings and every weight of the oracle."""
    digest = hashlib.sha256(repr(config).encode())
    for name, value in frozen.state_dict().items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _save(
    saved: Path, trained: nn.Module, optimizer: torch.optim.Optimizer, done: int, losses: list[float], identity: str
) -> None:
    state = {"identity": identity, "done": done, "losses": losses, "rng": checkpoint.rng_state()}
    checkpoint.save(saved, state | {"model": trained.state_dict(), "optimizer": optimizer.state_dict()})


def _resume(
    saved: Path, trained: nn.Module, optimizer: torch.optim.Optimizer, identity: str
) -> tuple[int, list[float]]:
    state = checkpoint.load(saved)
    if state is None:
        return 0, []
    try:
        if state.get("identity") != identity:
            raise ValueError("it was made with another oracle or with other settings")
        trained.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        checkpoint.restore_rng(state["rng"])
        return int(state["done"]), list(state["losses"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise StateError(
            f"checkpoint {saved} does not belong to this run: {error}", hint="delete it to train this stage again"
        ) from error
