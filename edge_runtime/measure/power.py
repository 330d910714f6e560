"""What the board draws while one subnet runs: readings of its power rail between runs that follow each other."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from edge_runtime.backends.base import Array, Session
from edge_runtime.errors import ResourceError
from edge_runtime.gates import Gates
from edge_runtime.measure.timing import Clock
from edge_runtime.sense import Known, Unknown
from edge_runtime.sense.power import Rail

__all__ = ["SETTLE_SECONDS", "mean_power_w"]

SETTLE_SECONDS = 0.1
"""A sensor that averages gives the mean of some tens of milliseconds: what it says so soon is of what ran before."""

READ_EVERY_SECONDS = 0.02


def mean_power_w(
    session: Session,
    inputs: Mapping[str, Array],
    gates: Gates,
    rail: Rail,
    *,
    seconds: float,
    clock_ns: Clock,
) -> float:
    """Mean power of the whole board while a subnet runs without a pause, watts; whatever else runs is in it.

    The rail is read between runs, and seldom: reading a bus takes as long as a quick run does, and the processor waits
    for it. A sensor that does not average sees the board in that gap, and reads too low.

    Args:
        session: The session that really serves frames.
        inputs: One batch in the form of `session.inputs`.
        gates: The subnet.
        rail: Where power is read, every `READ_EVERY_SECONDS`.
        seconds: How long, above 0; the time in which the sensor settles comes before it.
        clock_ns: The clock, nanoseconds.

    Raises:
        BackendError: A run failed.
        ResourceError: The rail gave not one reading.
    """
    began_ns, readings, due_s = clock_ns(), list[Known[float]](), SETTLE_SECONDS
    while not readings or clock_ns() - began_ns < (SETTLE_SECONDS + seconds) * 1e9:
        session.run(inputs, gates)
        if clock_ns() - began_ns >= due_s * 1e9:
            readings.append(rail.power_w())
            due_s = (clock_ns() - began_ns) / 1e9 + READ_EVERY_SECONDS
    known = [reading for reading in readings if not isinstance(reading, Unknown)]
    if not known:
        raise ResourceError(
            f"the power rail cannot be read: {readings[-1]}", hint="leave the limit on the energy out of the budget"
        )
    return fmean(known)
