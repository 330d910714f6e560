"""The processes of one training run, by torch.distributed alone: started by torchrun, or one process by itself.

Every rank has its own part of each batch; gradients are averaged, so that the ranks hold the same weights at every
step. Rank 0 alone writes files.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from edge_runtime.errors import BackendError, UsageError

__all__ = ["Ranks", "joined_ranks", "started_processes"]


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this one is. Raises `UsageError` when built invalid."""

    rank: int = 0
    """0 to `world` - 1."""

    world: int = 1
    """Processes in all."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise UsageError(f"rank {self.rank} of {self.world} processes does not exist")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes checkpoints and logs."""
        return self.rank == 0

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace floating-point tensors in place by their mean over the ranks; the same shapes on each."""
        if self.world > 1:
            _average(list(tensors), self.world)

    def average_gradients(self, module: nn.Module) -> None:
        """Average the gradients that are there; all ranks train the same paths, so the same parameters have one."""
        self.average(p.grad for p in module.parameters() if p.grad is not None)

    def average_statistics(self, module: nn.Module) -> None:
        """Average the floating-point buffers (running means and variances), each rank having seen its own images."""
        self.average(buffer for buffer in module.buffers() if buffer.is_floating_point())

    def mean(self, value: float) -> float:
        """The mean of a number over the ranks, the same on each."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=_device())
        distributed.all_reduce(total)
        return total.item() / self.world

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]


def started_processes() -> int:
    """How many processes torchrun started, 1 without it. Raises `UsageError` where its variable is no such number."""
    return _variable("WORLD_SIZE", 1)


def _variable(name: str, least: int) -> int:
    text = os.environ.get(name, str(least))
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise UsageError(
            f"the environment variable {name} is {text!r}, not a number from {least} on",
            hint="torchrun sets it; without torchrun, unset it",
        )
    return int(text)


def _take_card(device: str, world: int) -> None:
    """Make the card of this rank's number on its machine the current one."""
    if device != "cuda":
        raise UsageError(f"{device} is one card for {world} processes", hint="say cuda: each process takes its own")
    number, cards = _variable("LOCAL_RANK", 0), torch.cuda.device_count()
    if number >= cards:
        raise BackendError(
            f"process {number} of this machine finds {cards} CUDA devices",
            hint="start no more processes on a machine than it has cards, or leave --device out",
        )
    torch.cuda.set_device(number)


def _device() -> str:
    """Where the exchanged tensors have to lie."""
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"


def _average(tensors: list[Tensor], world: int) -> None:
    """One exchange for all of them: many small ones would each wait for the network."""
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= world
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


@contextmanager
def joined_ranks(device: str = "cpu") -> Iterator[Ranks]:
    """Join the processes that torchrun started (nccl on CUDA, gloo else); one rank alone where it did not.

    Args:
        device: as torch names it; of several ranks on CUDA each takes the card of its number on its machine.

    Raises:
        BackendError: the other processes cannot be reached, or there is no card for this one.
        UsageError: one card is named for several ranks, or torchrun's variables are damaged.
    """
    world = started_processes()
    if world == 1:
        yield Ranks()
        return
    # Optimizers import it. When it comes after the group, it keeps the group, whose threads then abort the process as
    # the interpreter ends, about one time in ten.
    importlib.import_module("torch._dynamo")
    if device.startswith("cuda"):
        _take_card(device, world)
    try:
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    except (RuntimeError, ValueError) as error:
        raise BackendError(
            f"the {world} processes of this run cannot join: {str(error).partition(chr(10))[0]}",
            hint="start all of them with torchrun, with the same --rdzv-endpoint",
        ) from error
    try:
        yield Ranks(distributed.get_rank(), world)
    finally:
        distributed.destroy_process_group()
