"""A session without any native library: deterministic answers and a scripted cost on a clock of its own.

For tests of everything above the seam, here and in applications. A run takes no real time; it moves the session's clock
forward by what the script says, so that timing logic can be tested exactly.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from edge_runtime.backends.base import Array, check_gates, check_inputs
from edge_runtime.bundle import TensorSpec
from edge_runtime.errors import BackendError
from edge_runtime.gates import Gates, GateSpace

__all__ = ["FakeSession"]

Cost = Callable[[Gates], float]
Answer = Callable[[Mapping[str, Array], Gates], dict[str, Array]]


class FakeSession:
    """Implements `Session`.

    Args:
        space: The gate space that it accepts.
        inputs: What it takes.
        outputs: What it returns; float32, the first dimension is the batch of the first input.
        cost_ms: Milliseconds that a run of a subnet takes on `now_ns`; may raise to play a failing library.
        answer: Computes the outputs; None means numbers that depend on the inputs and the gates only.
    """

    name = "fake"
    maps_weights = False
    threads = 1

    def __init__(
        self,
        space: GateSpace,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        cost_ms: Cost = lambda gates: 1.0,
        answer: Answer | None = None,
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._space, self._cost_ms = space, cost_ms
        self._answer = answer or self._hashed
        self._lock = threading.Lock()
        self._now_ns = 0
        self._closed = False

    def now_ns(self) -> int:
        """The session's own clock, nanoseconds: give it to `measure` and `calibrate`."""
        return self._now_ns

    def run(self, inputs: Mapping[str, Array], gates: Gates) -> dict[str, Array]:
        """Answer, and move the clock; see `Session.run`."""
        if self._closed:
            raise BackendError("the session is closed", hint="open the model again")
        check_gates(self._space, gates)
        check_inputs(self.inputs, inputs)
        cost_ns = round(self._cost_ms(gates) * 1e6)
        with self._lock:
            self._now_ns += cost_ns
        return self._answer(inputs, gates)

    def prefer(self, gates: Gates) -> None:
        """Nothing is quicker than anything else here; see `Session.prefer`."""
        check_gates(self._space, gates)

    def hold(self, subnets: Sequence[Gates]) -> AbstractContextManager[None]:
        """Nothing is quicker than anything else here; see `Session.hold`."""
        for gates in subnets:
            check_gates(self._space, gates)
        return nullcontext()

    def in_parts(self) -> None:
        """There is nothing to cut; see `Session.in_parts`."""

    def close(self) -> None:
        """See `Session.close`."""
        self._closed = True

    def _hashed(self, inputs: Mapping[str, Array], gates: Gates) -> dict[str, Array]:
        """Standard normal numbers from a hash of each sample and the gates, so that batches do not matter."""
        samples = zip(*(inputs[spec.name] for spec in self.inputs), strict=True)
        seeds = [zlib.crc32(b"".join(part.tobytes() for part in parts) + str(gates).encode()) for parts in samples]
        made: dict[str, Array] = {}
        for spec in self.outputs:
            shape = tuple(size for size in spec.shape[1:] if size is not None)
            rows = [
                np.random.default_rng((seed, zlib.crc32(spec.name.encode()))).standard_normal(shape) for seed in seeds
            ]
            made[spec.name] = np.array(rows, np.float32)
        return made
