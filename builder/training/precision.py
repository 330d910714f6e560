"""Whether bf16 is faster than float32 on this CPU: some have instructions for it, on others it is emulated."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from builder.training.compute import Compute, Precision

__all__ = ["faster_precision"]

WARM_STEPS, TIMED_STEPS = 1, 3
WORTH_STEPS = 100
"""Shorter runs are not worth the measuring."""

GAIN = 1.2
"""Least speed-up for which float32 is left."""


def faster_precision(compute: Compute, step: Callable[[], object], steps: int) -> Precision:
    """``bf16`` where a step takes clearly less time in it, else ``fp32``; the caller puts the state back afterwards."""
    if steps < WORTH_STEPS:
        return "fp32"
    fp32_s, bf16_s = (_seconds(compute, step, precision) for precision in ("fp32", "bf16"))
    return "bf16" if bf16_s * GAIN < fp32_s else "fp32"


def _seconds(compute: Compute, step: Callable[[], object], precision: Precision) -> float:
    """The quickest of a few steps."""
    torch.manual_seed(0)  # the same random paths for both
    times = []
    for _ in range(WARM_STEPS + TIMED_STEPS):
        began = time.perf_counter()
        with compute.autocast(precision):
            step()
        times.append(time.perf_counter() - began)
    return min(times[WARM_STEPS:])
