"""Where a training runs and in which precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from builder.training.config import Batch
from builder.training.ranks import Ranks
from edge_runtime.errors import BackendError, UsageError

__all__ = ["Compute", "Precision"]

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Of the operations that autocast lowers; weights, optimiser and moving average are float32 always."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Compute:
    """Device, precision, memory layout and processes. Raises `UsageError` or `BackendError` when built invalid."""

    device: str = "cpu"
    """As torch names it: ``cpu``, ``cuda``, ``cuda:1``."""

    precision: Precision = "fp32"
    """``auto``: on CUDA bf16 where the card has it, else fp16; on a CPU what a few steps at the start prove faster.

    Two runs with ``auto`` on a CPU agree to the bit only where both chose the same; a resumed run keeps its choice.
    """

    channels_last: bool = True
    """Layout of images and convolutions; depthwise convolutions are faster so on CPUs."""

    ranks: Ranks = field(default_factory=Ranks)
    """Which process of how many this is."""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise UsageError(f"precision {self.precision!r} is not one of {', '.join(get_args(Precision))}")
        try:
            kind = torch.device(self.device).type
        except RuntimeError as error:
            raise UsageError(f"{self.device!r} is not a device", hint="one of cpu, cuda, cuda:1, ...") from error
        if kind not in ("cpu", "cuda"):
            raise UsageError(f"training on {self.device!r} is not supported", hint="use cpu or cuda")
        if kind == "cuda" and not torch.cuda.is_available():
            raise BackendError(
                f"device {self.device!r} was asked for, but torch finds no CUDA device",
                hint="leave --device out, or install a torch with CUDA",
            )

    @property
    def kind(self) -> str:
        """``cpu`` or ``cuda``."""
        return torch.device(self.device).type

    def settled(self) -> Precision | None:
        """The precision to use where it needs no measuring, else None."""
        if self.precision != "auto":
            return self.precision
        if self.kind == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        return None

    def place(self, batch: Batch) -> Batch:
        """A batch on this device, in this layout."""
        images, labels = batch
        layout = torch.channels_last if self.channels_last and images.ndim == 4 else torch.contiguous_format
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=layout)
        return images, None if labels is None else labels.to(self.device, non_blocking=True)

    def place_module(self, module: nn.Module) -> None:
        """Move a module to this device and layout, in place."""
        module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)

    def autocast(self, precision: Precision) -> contextlib.AbstractContextManager[object]:
        """The context in which a forward pass of `precision` runs."""
        if precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.kind, dtype=_DTYPES[precision])

    def backward(self, scaler: torch.amp.GradScaler) -> Callable[[Tensor], None]:
        """What a step calls on a loss: the scaled backward pass, outside of autocast."""

        def run(loss: Tensor) -> None:
            with torch.autocast(self.kind, enabled=False):
                scaler.scale(loss).backward()

        return run
