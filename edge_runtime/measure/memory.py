"""The memory model: what a process takes while it serves one subnet, before that subnet has run.

Memory is the runtime, the weights that the subnet pages in, and its live activations. The first is measured, the others
are what the library itself reports of every kernel (`KernelProfile`). The allocator holds somewhat more than is alive;
that is left out. Seen: 0 to 6 % off the measured process on networks of 2 to 100 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_runtime import sense
from edge_runtime.additive import AdditiveCost
from edge_runtime.backends.base import KernelProfile, Kernels, Session, SessionOptions
from edge_runtime.bundle import Bundle
from edge_runtime.gates import Gates, GateSpace
from edge_runtime.measure.calibrate import profiled

__all__ = ["MemoryModel", "estimate_memory"]


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Predicted memory of every subnet of a space of choices, counted as `sense.process_share_bytes` does."""

    weight_bytes: AdditiveCost
    """Constants that a subnet pages in."""

    live_bytes: tuple[tuple[int, ...], ...]
    """Per group and alternative: the most that is allocated while it runs."""

    base_live_bytes: int
    """The same of what runs in every subnet."""

    forms: int
    """Sessions that run the subnet, each with memory of its own: 2 where it runs alone and was compared first."""

    @classmethod
    def of(cls, space: GateSpace, profile: KernelProfile, *, maps_weights: bool) -> MemoryModel:
        """From a profile that covers every alternative.

        Args:
            space: Groups are choices.
            profile: Of vectors in which every alternative appears.
            maps_weights: Whether weights are paged in as they are used; where they are not, they are there already.
        """
        seen: dict[tuple[int, int], Kernels] = {}
        for gates, groups in zip(profile.vectors, profile.groups, strict=True):
            for index, (value, active) in enumerate(zip(gates.values, gates.active, strict=True)):
                if active and isinstance(value, int):
                    seen[index, value] = groups[index]
        base = profile.base[0].weight_bytes if maps_weights else 0
        weights = _rows(space, {key: k.weight_bytes if maps_weights else 0 for key, k in seen.items()})
        live = _rows(space, {key: k.live_bytes for key, k in seen.items()})
        base_live = max(kernels.live_bytes for kernels in profile.base)
        return cls(AdditiveCost(space, base, weights), live, base_live, 1 + profile.alone)

    def subnet_bytes(self, gates: Gates) -> int:
        """What running a subnet adds to the runtime."""
        return round(self.weight_bytes(gates)) + self.forms * self.peak_live_bytes(gates)

    def peak_live_bytes(self, gates: Gates) -> int:
        """The most that one session has allocated while it runs a subnet."""
        rows = zip(self.live_bytes, gates.values, gates.active, strict=True)
        return max(self.base_live_bytes, *(row[v] for row, v, active in rows if active and isinstance(v, int)))


def _rows(space: GateSpace, seen: Mapping[tuple[int, int], int]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(seen[index, value] for value in range(group.size)) for index, group in enumerate(space.groups))


def estimate_memory(
    bundle: Bundle,
    session: Session,
    options: SessionOptions,
    *,
    process_bytes: sense.Known[int],
    seed: int,
    scratch: Path | None,
) -> tuple[int, MemoryModel] | None:
    """The runtime's own bytes in this process, and what each subnet adds; None where it cannot be told.

    `process_bytes` is what `sense.process_share_bytes` gave when `session` had run the full subnet and nothing else.
    """
    profile = profiled(bundle, session, options, seed=seed, scratch=scratch, seconds=0.0)
    if profile is None or isinstance(process_bytes, sense.Unknown):
        return None
    full = bundle.manifest.space.default
    model = MemoryModel.of(full.space, profile, maps_weights=session.maps_weights)
    return max(0, process_bytes - round(model.weight_bytes(full)) - model.peak_live_bytes(full)), model
