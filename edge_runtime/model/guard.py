"""The output guard: a non-finite or wrongly shaped output never leaves; the last good subnet answers instead."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_runtime.backends.base import Array, Session
from edge_runtime.bundle import TensorSpec
from edge_runtime.errors import BackendError
from edge_runtime.gates import Gates
from edge_runtime.measure import Clock

__all__ = ["Answer", "OutputGuard"]


@dataclass(frozen=True, slots=True)
class Answer:
    """Outputs that may leave."""

    outputs: dict[str, Array]
    """Every output by name."""

    gates: Gates
    """The subnet that gave them."""

    run_ns: int
    """How long that subnet's run took, nanoseconds."""

    fault: str = ""
    """What was wrong with the outputs of the subnet that was asked for; empty where they were good."""

    to_blame: bool = False
    """Whether the fault is the subnet's own: unusable outputs, or a single frame that it alone could not run."""


class OutputGuard:
    """Runs subnets and judges their outputs. Thread-safe."""

    def __init__(self, session: Session, default: Gates, clock_ns: Clock = time.perf_counter_ns) -> None:
        self._session = session
        self._default = default
        self._clock_ns = clock_ns
        self._last_good = default
        self._bad = 0
        self._lock = threading.Lock()

    @property
    def bad_outputs(self) -> int:
        """How often a subnet's outputs were unusable, or its run failed, since the model was loaded."""
        return self._bad

    def run(self, inputs: Mapping[str, Array], gates: Gates) -> Answer:
        """Run a subnet; where its outputs are unusable, the last good subnet, and at last the full one.

        Raises:
            InputError: The inputs do not fit; nothing was run.
            BackendError: Not even the full subnet gives a usable output.
        """
        first = next(iter(inputs.values()), None)
        batch = len(first) if isinstance(first, np.ndarray) and first.ndim else 0
        outputs, run_ns, fault, refused = self._try(inputs, gates, batch)
        if not fault:
            self._last_good = gates
            return Answer(outputs, gates, run_ns)
        for other in dict.fromkeys((self._last_good, self._default)):
            if other == gates:
                continue
            outputs, run_ns, again, _ = self._try(inputs, other, batch)
            if not again:
                # A library that refuses many frames at once (memory) says nothing about how the subnet does one.
                return Answer(outputs, other, run_ns, fault, to_blame=not refused or batch == 1)
        hint = "give fewer frames at once" if refused and batch > 1 else "run 'nnf-edge verify' on the bundle"
        raise BackendError(f"no subnet gives a usable output: {fault}", hint=hint)

    def _try(self, inputs: Mapping[str, Array], gates: Gates, batch: int) -> tuple[dict[str, Array], int, str, bool]:
        """Outputs, nanoseconds, what is wrong with them, and whether that is because the library did not run it."""
        began_ns, refused = self._clock_ns(), False
        try:
            outputs = self._session.run(inputs, gates)
        except BackendError as error:
            outputs, fault, refused = {}, error.message, True
        else:
            fault = _fault(self._session.outputs, outputs, batch)
        run_ns = self._clock_ns() - began_ns
        if fault:
            with self._lock:
                self._bad += 1
        return outputs, run_ns, fault, refused


def _fault(specs: tuple[TensorSpec, ...], outputs: Mapping[str, Array], batch: int) -> str:
    """What is wrong with the outputs, or an empty text."""
    for spec in specs:
        output = outputs.get(spec.name)
        if output is None:
            return f"output {spec.name!r} is missing"
        shape = tuple(batch if side is None else side for side in spec.shape)
        if output.shape != shape:
            return f"output {spec.name!r} has the shape {list(output.shape)}, not {list(shape)}"
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            return f"output {spec.name!r} holds NaN or infinity"
    return ""
