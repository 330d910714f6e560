"""What an application can afford."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from edge_runtime.checks import fields, positive
from edge_runtime.errors import UsageError

__all__ = ["MIB", "Budget"]

MIB = 1024 * 1024

MOST_FRACTION = 2.0
"""Share of the full subnet's time above which a budget is a slip of the pen."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What the application can afford; fields left out limit nothing. Raises `UsageError` when built invalid."""

    latency_ms: float | None = None
    """Upper limit of the p95 latency of one frame, milliseconds, above 0. Not together with `fraction`."""

    memory_mib: float | None = None
    """Upper limit of the peak memory of the process, MiB, above 0."""

    fraction: float | None = None
    """Upper limit of the p95 latency as a share of the full subnet's p95 on the same machine, above 0 to 2. Example:
    0.6."""

    energy_mj: float | None = None
    """Upper limit of what the whole board takes for one frame, millijoules, above 0; needs a power rail to read."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, positive(f"budget {name}", value))
        if self.fraction is not None and self.fraction > MOST_FRACTION:
            raise UsageError(
                f"a budget of {self.fraction:.0%} of the full subnet's time limits nothing",
                hint="60 percent are 60% on the command line and fraction=0.6 in Python",
            )
        if self.latency_ms is not None and self.fraction is not None:
            raise UsageError("a budget has either latency_ms or fraction, not both", hint="leave one of them out")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a latency budget as people type it: ``33`` or ``33ms``, or ``60%`` of the full subnet's p95."""
        match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(ms|%)?\s*", text)
        if match is None:
            raise UsageError(f"budget {text[:40]!r} is not understood", hint="write milliseconds like 33, or 60%")
        number = float(match[1])
        return cls(fraction=number / 100) if match[2] == "%" else cls(latency_ms=number)

    def limit_ms(self, full_latency_ms: float, full_energy_mj: float | None = None) -> float:
        """The limit of the p95 latency in milliseconds; inf where none is set.

        A limit on the energy is one on the time as well: the subnets of one network draw about the same power.

        Args:
            full_latency_ms: p95 of the full subnet on this machine.
            full_energy_mj: What the full subnet takes for one frame; None, and the limit on the energy does not count.
        """
        limits = [math.inf if self.latency_ms is None else self.latency_ms]
        if self.fraction is not None:
            limits.append(self.fraction * full_latency_ms)
        if self.energy_mj is not None and full_energy_mj is not None:
            limits.append(self.energy_mj / full_energy_mj * full_latency_ms)
        return min(limits)

    @property
    def limits_time(self) -> bool:
        """Whether any limit is one on the time, as that on the energy is."""
        return any(limit is not None for limit in (self.latency_ms, self.fraction, self.energy_mj))

    @property
    def memory_bytes(self) -> float:
        """The memory limit in bytes; inf where none is set."""
        return math.inf if self.memory_mib is None else self.memory_mib * MIB

    def __str__(self) -> str:
        parts = []
        if self.latency_ms is not None:
            parts.append(f"{self.latency_ms:g} ms")
        if self.fraction is not None:
            parts.append(f"{self.fraction:.0%} of the full subnet")
        if self.memory_mib is not None:
            parts.append(f"{self.memory_mib:g} MiB")
        if self.energy_mj is not None:
            parts.append(f"{self.energy_mj:g} mJ")
        return ", ".join(parts) or "no limit"

    def to_json(self) -> dict[str, float]:
        """The limits that are set, by field name."""
        limits = {name: getattr(self, name) for name in self.__slots__}
        return {name: limit for name, limit in limits.items() if limit is not None}

    @classmethod
    def from_json(cls, body: object) -> Budget:
        """Inverse of `to_json`. Raises `UsageError`, never another exception, whatever the body."""
        return cls(**fields("budget", body, required=(), optional=cls.__slots__))
