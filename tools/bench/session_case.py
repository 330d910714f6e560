"""One prepared bundle, as the parts of `sessions.py` look at it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.backends import SessionOptions
from edge_runtime.backends.onnx.compiled import CompiledSession
from edge_runtime.bundle import Bundle
from edge_runtime.gates import Gates, GateSpace
from edge_runtime.seeds import random_gates

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Case:
    """One bundle, prepared."""

    name: str
    bundle: Bundle
    folder: Path
    options: SessionOptions
    quick: bool

    @property
    def space(self) -> GateSpace:
        """Its gates."""
        return self.bundle.manifest.space

    def compiled(self, *, specialises: bool) -> CompiledSession:
        """A session of the prepared folder, with tier 2 or without."""
        return CompiledSession(self.folder, self.bundle.manifest, self.options, form="tier", specialises=specialises)

    def subnets(self) -> dict[str, Gates]:
        """Full, some mixed ones, and everything at its narrowest."""
        rng = random.Random(0)
        mixed = {f"mixed{number}": random_gates(self.space, rng) for number in range(2 if self.quick else 4)}
        narrow = self.space.gates([_narrowest(group.labels) for group in self.space.groups])
        return {"full": self.space.default, **mixed, "narrow": narrow}


def _narrowest(labels: Sequence[str]) -> int:
    widths = {int(label[6:]): value for value, label in enumerate(labels) if label.startswith("narrow")}
    return widths[min(widths)] if widths else 0
