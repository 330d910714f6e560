"""Counts frames and keeps a ring of their latencies."""

from __future__ import annotations

import threading

import numpy as np

from edge_runtime.objectives import percentile

__all__ = ["FrameMeter"]

RING = 1024
"""Frames that percentiles are taken over."""


class FrameMeter:
    """Counts frames and keeps the last latencies. Thread-safe."""

    def __init__(self) -> None:
        self._run_ns = np.zeros(RING, np.int64)
        self._overhead_ns = np.zeros(RING, np.int64)
        self._frames = 0
        self._overheads = 0
        self._misses = 0
        self._lock = threading.Lock()

    @property
    def frames(self) -> int:
        """Frames counted."""
        return self._frames

    @property
    def misses(self) -> int:
        """Frames that took longer than their limit."""
        return self._misses

    def add(self, run_ns: int, overhead_ns: int | None, limit_ms: float | None) -> None:
        """Count one frame: its run, what it took besides, and the limit of the run."""
        with self._lock:
            self._run_ns[self._frames % RING] = run_ns
            self._frames += 1
            if overhead_ns is not None:
                self._overhead_ns[self._overheads % RING] = overhead_ns
                self._overheads += 1
            self._misses += limit_ms is not None and run_ns > limit_ms * 1e6

    def percentiles_ms(self, *qs: int) -> tuple[float | None, ...]:
        """Nearest-rank percentiles of the run over the ring, milliseconds; None before the first frame."""
        with self._lock:
            held = np.sort(self._run_ns[: min(self._frames, RING)]).tolist()
        return tuple(percentile(held, q) / 1e6 if held else None for q in qs)

    def overhead_ms(self) -> float | None:
        """Median time besides the run, milliseconds; None before the first frame."""
        with self._lock:
            held = np.sort(self._overhead_ns[: min(self._overheads, RING)]).tolist()
        return percentile(held, 50) / 1e6 if held else None
