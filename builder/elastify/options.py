"""What a user may ask of `elastify`."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.errors import UsageError

__all__ = ["ElasticOptions"]


@dataclass(frozen=True, slots=True)
class ElasticOptions:
    """What each unit is offered beside the original."""

    widths: tuple[float, ...] = (0.5, 0.25)
    """Ratios of inner channels of the narrower copies, in (0, 1)."""

    merged_widths: tuple[float, ...] = (1.0, 0.5)
    """Ratios of inner channels of the merged alternatives, in (0, 1]."""

    window: int = 3
    """Most units that one merged alternative replaces, 1 turns merging off."""

    skip: bool = True
    """Whether units that keep their shape may be skipped."""

    storage_ratio: float = 2.0
    """Most bytes of the supernet as a multiple of the oracle's, above 1; see `budget`."""

    def __post_init__(self) -> None:
        if not all(0 < width < 1 for width in self.widths) or not all(0 < width <= 1 for width in self.merged_widths):
            raise UsageError(f"widths {self.widths} and merged widths {self.merged_widths} must lie in (0, 1]")
        if not 1 <= self.window <= 4:
            raise UsageError(f"a window spans 1 to 4 units, got {self.window}")
        if not self.storage_ratio > 1:
            raise UsageError(f"a supernet holds the oracle and more: a storage ratio above 1, got {self.storage_ratio}")
