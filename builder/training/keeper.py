"""The copies of a run's state: the good one in memory, and the file that a later process goes on from."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from torch import nn

from builder import checkpoint
from builder.training.state import TrainingState
from edge_runtime.errors import StateError

__all__ = ["SNAPSHOT_EVERY", "Keeper", "identity_of"]

SNAPSHOT_EVERY = 16
"""Steps between two copies."""

CHECKPOINT_EVERY_S = 20.0
SAVING_SHARE = 0.05
"""Largest part of the time that is spent on writing checkpoints."""


class Keeper:
    """Copies the state every few steps; the copy before the last one is the good one, and is what the file holds.

    A jump shows some steps after its cause, so the last copy may hold the cause already. And as the good state depends
    on the number of steps alone, what a run does after a jump is the same whether it was killed before or not.

    Args:
        path: the checkpoint; None keeps nothing on the disk, as do ranks other than the first.
        identity: what the checkpoint belongs to.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self._path, self._identity = path, identity
        self._good: dict[str, Any] = {}
        self._last: dict[str, Any] = {}
        self._written = 0
        self._written_at, self._writing_s = time.monotonic(), 0.0

    def read(self) -> dict[str, Any] | None:
        """The state in the file, None where there is none; `StateError` where it is damaged or of another run."""
        kept = None if self._path is None else checkpoint.load(self._path)
        if kept is not None and kept.get("identity") != self._identity:
            raise self.foreign("it was made with another oracle, with other settings or by another version")
        return kept

    def foreign(self, why: str) -> StateError:
        """The error for a file that holds something else."""
        return StateError(
            f"checkpoint {self._path} does not belong to this run: {why}", hint="delete it to train this stage again"
        )

    def begin(self, state: TrainingState) -> None:
        """Take `state` as good: at the start, and after a jump."""
        self._good = self._last = state.take()
        self._written = state.done

    def follow(self, state: TrainingState) -> None:
        """Copy `state` when it is time to, and write the good one when it is time to."""
        if state.done % SNAPSHOT_EVERY:
            return
        self._good, self._last = self._last, state.take()
        wait_s = max(CHECKPOINT_EVERY_S, self._writing_s / SAVING_SHARE)
        if self._good["done"] > self._written and time.monotonic() - self._written_at >= wait_s:
            self.write_good()

    def restore(self, state: TrainingState) -> None:
        """Put the good state back."""
        state.put(self._good)

    def write_good(self) -> None:
        """Write the good state, so that another process can go on."""
        self._write(self._good)

    def write(self, state: TrainingState) -> None:
        """Write a state from which no jump can be seen any more: the first and the last."""
        self._write(state.take())

    def _write(self, kept: dict[str, Any]) -> None:
        if self._path is None:
            return
        began = time.monotonic()
        checkpoint.save(self._path, {"identity": self._identity} | kept)
        self._written, self._written_at = kept["done"], time.monotonic()
        self._writing_s = self._written_at - began


def identity_of(settings: object, oracle: nn.Module) -> str:
    """What a checkpoint belongs to: the settings, by their repr, and every weight of the oracle."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, value in oracle.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
