"""Timing on this machine, and the model that predicts it. `machine_lock` keeps two benchmarks from running at once."""

from edge_runtime.backends.base import random_inputs
from edge_runtime.measure.calibrate import calibrate
from edge_runtime.measure.latency import Drift, LatencyModel
from edge_runtime.measure.memory import MemoryModel, estimate_memory
from edge_runtime.measure.power import mean_power_w
from edge_runtime.measure.timing import (
    Candidate,
    Clock,
    heeding,
    measure,
    measure_candidates,
    measure_in_bursts,
)
from edge_runtime.state import machine_lock

__all__ = [
    "Candidate",
    "Clock",
    "Drift",
    "LatencyModel",
    "MemoryModel",
    "calibrate",
    "estimate_memory",
    "heeding",
    "machine_lock",
    "mean_power_w",
    "measure",
    "measure_candidates",
    "measure_in_bursts",
    "random_inputs",
]
