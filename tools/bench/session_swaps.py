"""What a swap costs, and whether a loop of frames notices a great many of them."""

from __future__ import annotations

import gc
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from session_case import Case
from session_memory import anonymous_mib

from edge_runtime.backends.base import random_inputs
from edge_runtime.seeds import random_gates

RATE_HZ = 30

SETTLED_SECONDS = 5.0
"""Most that is waited until the thread that makes sessions has ended."""


def swap_cost(case: Case) -> dict[str, float]:
    """Microseconds that the first run after a swap takes longer at tier 1; milliseconds to make a tier-2 session."""
    session = case.compiled(specialises=True)
    gated = case.compiled(specialises=False)
    inputs = random_inputs(session.inputs, seed=0)
    one, other = case.space.default, case.subnets()["mixed0"]
    after_other, after_itself, made_ms = [], [], []
    for _ in range(40 if case.quick else 150):
        for before, times in ((other, after_other), (one, after_itself)):
            gated.run(inputs, one)
            gated.run(inputs, before)
            began_ns = time.perf_counter_ns()
            gated.run(inputs, one)
            times.append(time.perf_counter_ns() - began_ns)
    rng = random.Random(1)
    for _ in range(5 if case.quick else 15):
        gates = random_gates(case.space, rng)
        began_ns = time.perf_counter_ns()
        with session.hold([gates]):
            made_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
    session.close()
    gated.close()
    pairs = zip(after_other, after_itself, strict=True)  # made one after the other: the machine's speed is the same
    return {
        "swap_us": statistics.median(other - itself for other, itself in pairs) / 1e3,
        "specialise_ms": statistics.median(made_ms),
    }


def swap_loop(case: Case) -> dict[str, Any]:
    """A loop of 30 frames a second: p99 with ten swaps a second over without, and between two loops without (A/A)."""
    session = case.compiled(specialises=True)
    # Each differs from the full subnet in one decision, so they are about as fast; each swap makes another session.
    subnets = [case.space.default.replace(index, 1) for index in range(12)]
    inputs = random_inputs(session.inputs, seed=0)
    wanted = {gates: session.run(inputs, gates) for gates in subnets}
    frames, rounds = (60, 4) if case.quick else (300, 10)
    p99: dict[str, list[float]] = {"calm": [], "again": [], "swapping": []}
    wrong, before = 0, _grown()
    for number in range(rounds):
        if number == 1:
            before = _grown()  # by now as many sessions are kept as ever will be
        for kind, found in p99.items():
            times = []
            gates = subnets[0]
            for frame in range(frames):
                began = time.perf_counter()
                if kind == "swapping" and frame % 3 == 0:
                    gates = subnets[(frame // 3) % len(subnets)]
                at_ns = time.perf_counter_ns()
                if kind == "swapping" and frame % 3 == 0:
                    session.prefer(gates)
                outputs = session.run(inputs, gates)
                times.append((time.perf_counter_ns() - at_ns) / 1e6)
                wrong += not all(np.allclose(outputs[k], wanted[gates][k], rtol=1e-3, atol=1e-4) for k in outputs)
                time.sleep(max(0.0, 1 / RATE_HZ - (time.perf_counter() - began)))
            found.append(float(np.percentile(times, 99)))
    grown = {name: now - before[name] for name, now in _grown().items()}
    session.close()
    ratio = [swap / calm for swap, calm in zip(p99["swapping"], p99["calm"], strict=True)]
    same = [again / calm for again, calm in zip(p99["again"], p99["calm"], strict=True)]
    return {
        "p99_ratio": statistics.median(ratio),
        "a_a_ratio": statistics.median(same),
        "swaps": rounds * frames // 3,
        "wrong": wrong,
        "grown": grown,
    }


def _grown() -> dict[str, float]:
    """What this process has, when nothing is being made or given back in the background."""
    deadline = time.monotonic() + SETTLED_SECONDS
    while threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    gc.collect()
    return {
        "threads": threading.active_count(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "private_mib": round(anonymous_mib(), 1),
    }
