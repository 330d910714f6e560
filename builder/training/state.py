"""Everything that training changes, as one value that can be copied, written and put back.

A state holds no clock time and nothing of the machine: two runs with the same steps have the same states, bit by bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from builder import checkpoint
from builder.training.config import LoopConfig
from builder.training.guard import JumpGuard

__all__ = ["TrainingState"]


class TrainingState:
    """Weights, optimiser, moving average, random numbers, losses and the guard of one run."""

    def __init__(self, trained: nn.Module, config: LoopConfig, device: str) -> None:
        self.trained, self.config = trained, config
        self._kind = torch.device(device).type
        self.optimizer = _optimizer(trained, config, fused=self._kind == "cuda")
        self.scaler = torch.amp.GradScaler(self._kind, enabled=False)
        self.guard = JumpGuard()
        self.average = _copied(trained.state_dict()) if config.ema_decay is not None else None
        self.precision = ""
        self.done = 0
        """Steps taken."""
        self.jumps = 0
        """Times that the run went back because the loss jumped."""
        self.losses: list[float] = []
        """Of the steps of the current epoch."""
        self.history: list[float] = []
        """Mean loss of each finished epoch."""

    def use(self, precision: str) -> None:
        """Train in `precision` from here on; fp16 needs its gradients scaled."""
        self.precision = precision
        self.scaler = torch.amp.GradScaler(self._kind, enabled=precision == "fp16")

    def take(self) -> dict[str, Any]:
        """A copy of all of it: tensors, numbers, strings and lists and dicts of them."""
        return _copied(
            {
                "precision": self.precision,
                "done": self.done,
                "jumps": self.jumps,
                "losses": self.losses,
                "history": self.history,
                "guard": self.guard.state(),
                "model": self.trained.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "average": self.average,
                "rng": checkpoint.rng_state(),
            }
        )

    def put(self, kept: dict[str, Any]) -> None:
        """Go back to what `take` gave, which stays as it is."""
        kept = _copied(kept)
        self.trained.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        for group in self.optimizer.param_groups:
            group["fused"] = self._kind == "cuda"  # of this device, not of the one that wrote the state
        self.use(kept["precision"])
        self.scaler.load_state_dict(kept["scaler"])
        self.average = kept["average"] and _like(kept["average"], self.trained.state_dict())
        self.guard.restore(kept["guard"])
        self.done, self.jumps = int(kept["done"]), int(kept["jumps"])
        self.losses, self.history = list(kept["losses"]), list(kept["history"])
        checkpoint.restore_rng(kept["rng"])

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average a step towards the weights; statistics of BN are averaged, counters are copied."""
        if self.average is None or self.config.ema_decay is None:
            return
        decay = min(self.config.ema_decay, (1 + self.done) / (10 + self.done))
        current = self.trained.state_dict()
        moving = [name for name, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in moving], [current[name] for name in moving], 1 - decay)
        for name in current.keys() - set(moving):
            self.average[name].copy_(current[name])

    def result(self) -> dict[str, Tensor]:
        """The weights to keep: the moving average where there is one."""
        return self.average if self.average is not None else self.trained.state_dict()


def _optimizer(trained: nn.Module, config: LoopConfig, *, fused: bool) -> torch.optim.Optimizer:
    parameters = [p for p in trained.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, fused=fused)


def _copied(value: Any) -> Any:
    """A deep copy in which no tensor shares memory with the original or with its graph."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(part) for part in value)
    return value


def _like(values: dict[str, Tensor], models: dict[str, Tensor]) -> dict[str, Tensor]:
    """`values` on the devices and in the layouts of `models`."""
    return {name: torch.empty_like(models[name]).copy_(value) for name, value in values.items()}
