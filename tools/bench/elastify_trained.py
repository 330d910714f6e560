"""What an arm's training leaves in `trained.pt`: enough for another machine to export and score it."""

# ruff: noqa: TID251 - a bench may use torch and the builder; only the runtime must not

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastify_recipes import Training
from torch import nn

from builder import checkpoint
from builder.training import identity_of
from edge_runtime.errors import StateError

__all__ = ["TRAINED", "Trained"]

TRAINED = "trained.pt"


@dataclass(frozen=True, slots=True)
class Trained:
    """The file of one arm, bound to the oracle and to what was asked for.

    Args:
        folder: of the arm.
        seed: of the arm.
        training: minutes and batch size; where it ran is in the figures.
        oracle: frozen, as loaded.
    """

    folder: Path
    seed: int
    training: Training
    oracle: nn.Module

    def read(self) -> dict[str, Any] | None:
        """Figures and weights, None where there are none; `StateError` where they are of another oracle or request."""
        kept = checkpoint.load(self.folder / TRAINED)
        if kept is not None and kept.get("belongs_to") != self._identity():
            raise StateError(
                f"{self.folder / TRAINED} was trained with another oracle, other minutes or another batch size",
                hint="name those it was trained with, or delete it to train the arm again",
            )
        return kept

    def write(self, trained: nn.Module, figures: dict[str, Any]) -> None:
        """Keep the weights of `trained`, which is on the CPU, and what is known of its training."""
        content = {"belongs_to": self._identity(), "weights": trained.state_dict(), "figures": figures}
        checkpoint.save(self.folder / TRAINED, content)

    def _identity(self) -> str:
        asked = (self.folder.name, self.seed, self.training.minutes, self.training.batch_size)
        return identity_of(asked, self.oracle)
