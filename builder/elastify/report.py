"""What `elastify` found: every unit, what it got, and why not more; in JSON and as a table for people."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from edge_runtime.errors import UsageError

__all__ = ["ElastifyReport", "NothingElasticError", "UnitReport"]


@dataclass(frozen=True, slots=True)
class UnitReport:
    """One unit, or a region that could not become one."""

    name: str
    """Gate group, e.g. ``unit3``; empty where it stayed fixed."""

    kind: str
    """In one clause what it is, e.g. ``residual region``."""

    first_layer: str
    """Path of its first layer in the developer's module."""

    in_shape: tuple[int, ...]
    """Without the batch."""

    out_shape: tuple[int, ...]
    """Without the batch."""

    macs: int
    """Multiply-accumulates of the original for one image."""

    alternatives: tuple[str, ...]
    """Labels of what it got beside the original."""

    why_not_more: str
    """In one clause; empty where it got everything that was asked for."""


@dataclass(frozen=True, slots=True)
class ElastifyReport:
    """What was made elastic and what was not. Raises `UsageError` when built invalid."""

    units: tuple[UnitReport, ...]
    """All units in order, those without alternatives included."""

    total_macs: int
    """Multiply-accumulates of the oracle for one image."""

    elastic_macs: int
    """Of these, in units that have alternatives."""

    least_macs: int
    """Multiply-accumulates of the cheapest subnet."""

    oracle_bytes: int
    """Weights and statistics of the oracle."""

    supernet_bytes: int
    """Weights and statistics of the supernet, the oracle included."""

    subnets: float
    """Number of different subnets."""

    fixed: str
    """In one clause what the rest of the compute is in, and why it is fixed."""

    def __post_init__(self) -> None:
        if not 0 <= self.elastic_macs <= self.total_macs or self.supernet_bytes < self.oracle_bytes:
            raise UsageError(f"a report of {self.elastic_macs} of {self.total_macs} MACs elastic cannot be")

    @property
    def elastic_share(self) -> float:
        """Share of the oracle's compute that lies in units with alternatives, 0 to 1."""
        return self.elastic_macs / max(1, self.total_macs)

    @property
    def storage_ratio(self) -> float:
        """Bytes of the supernet over bytes of the oracle."""
        return self.supernet_bytes / max(1, self.oracle_bytes)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return asdict(self) | {
            "elastic_share": round(self.elastic_share, 4),
            "storage_ratio": round(self.storage_ratio, 4),
            "least_share": round(self.least_macs / max(1, self.total_macs), 4),
        }

    def to_text(self) -> str:
        """The report as an aligned table with the sums below it."""
        header = ("unit", "first layer", "kind", "in", "out", "MMAC", "alternatives", "why not more")
        rows = [header, *(_row(unit) for unit in self.units)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", *self._sums()])

    def _sums(self) -> list[str]:
        size = math.log10(self.subnets) if self.subnets > 0 else 0
        return [
            f"elastic: {self.elastic_share:.1%} of {self.total_macs / 1e6:.1f} million multiply-accumulates; "
            f"the cheapest subnet has {self.least_macs / max(1, self.total_macs):.1%}",
            f"fixed: {self.fixed}",
            f"space: 10^{size:.1f} subnets",
            f"storage: {self.storage_ratio:.2f}x the oracle's {self.oracle_bytes / 2**20:.2f} MiB",
        ]


def _row(unit: UnitReport) -> tuple[str, ...]:
    return (
        unit.name or "-",
        unit.first_layer,
        unit.kind,
        "x".join(map(str, unit.in_shape)),
        "x".join(map(str, unit.out_shape)),
        f"{unit.macs / 1e6:.2f}",
        " ".join(unit.alternatives) or "-",
        unit.why_not_more or "-",
    )


class NothingElasticError(UsageError):
    """No unit of a network can be made elastic; `report` says what was looked at."""

    def __init__(self, message: str, *, report: ElastifyReport, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.report = report
