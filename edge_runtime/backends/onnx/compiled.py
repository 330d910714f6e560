"""The form that was prepared on this machine: every subnet in one mapped graph, the often-used ones on their own.

Tier 1 is the prepared gated graph; the weights of branches that do not run stay on the disk. Tier 2 are sessions of one
subnet each: the gates are inlined into the prepared skeleton, the weights are the same mapped file, and nothing is
optimised again, so that one is made in milliseconds. Which tier runs is looked up anew in each run.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.backends.base import Array, SessionOptions, check_gates, check_inputs
from edge_runtime.backends.onnx.prepare import SKELETON
from edge_runtime.backends.onnx.session import create_prepared, foreign_errors
from edge_runtime.bundle import Manifest, TensorSpec
from edge_runtime.errors import BackendError
from edge_runtime.gates import Gates

__all__ = ["CompiledSession"]

KEPT = 3
"""Specialised sessions that stay at most beside those that are preferred: the active subnet was often active before."""


class CompiledSession:
    """Implements `Session` over a prepared folder. Thread-safe.

    Args:
        folder: What `prepare` made; it has to stay while the session is open.
        manifest: Of the bundle.
        options: What the folder was prepared for.
        form: Which form it is, for people.
        specialises: Whether sessions of single subnets are quicker here.
    """

    maps_weights = True

    def __init__(
        self, folder: Path, manifest: Manifest, options: SessionOptions, *, form: str, specialises: bool
    ) -> None:
        self.name = f"onnxruntime-{form}"
        self.threads = options.threads
        self.inputs: tuple[TensorSpec, ...] = manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = manifest.outputs
        self.folder = folder
        """Where the prepared files are."""
        self._options, self._specialises = options, specialises
        self._space, self._gate_input = manifest.space, manifest.gate_input
        self._output_names = [spec.name for spec in manifest.outputs]
        self._gated: Any = create_prepared(folder / SKELETON, options)
        self._skeleton: Any = None
        self._special: OrderedDict[Gates, Any] = OrderedDict()
        self._making = threading.Lock()
        self._wanted: tuple[Gates, ...] = ()
        self._asking = threading.Lock()
        self._serving = False

    def run(self, inputs: Mapping[str, Array], gates: Gates) -> dict[str, Array]:
        """Run one subnet on one batch; see `Session.run`."""
        gated, special = self._gated, self._special.get(gates)
        if gated is None:
            raise BackendError("the session is closed", hint="open the model again")
        check_gates(self._space, gates)
        check_inputs(self.inputs, inputs)
        with foreign_errors(f"subnet {gates} could not be run"):
            if special is not None:
                values = special.run(self._output_names, dict(inputs))
            else:
                vector = np.array(gates.vector(), dtype=np.int64)
                values = gated.run(self._output_names, {**inputs, self._gate_input: vector})
        return dict(zip(self._output_names, values, strict=True))

    def prefer(self, subnets: Sequence[Gates], *, wait: bool = False) -> None:
        """Make sessions of these subnets alone, in the background or now; see `Session.prefer`."""
        for gates in subnets:
            check_gates(self._space, gates)
        if not self._specialises or self._gated is None:
            return
        with self._asking:
            self._wanted = tuple(dict.fromkeys(subnets))
            serve = not wait and not self._serving
            self._serving = self._serving or serve
        if wait:
            self._make_wanted(pause=None)
        elif serve:
            threading.Thread(target=self._serve, name="nnf-edge-specialise", daemon=True).start()

    def close(self) -> None:
        """Drop all native sessions; see `Session.close`."""
        self._wanted, self._gated = (), None
        with self._making:
            self._special.clear()
            self._skeleton = None

    @property
    def specialised(self) -> tuple[Gates, ...]:
        """The subnets that have a session of their own now."""
        return tuple(self._special)

    def _serve(self) -> None:
        """Make what is wanted, and what was wanted meanwhile; what fails is served by tier 1."""
        done: tuple[Gates, ...] | None = None
        while True:
            with self._asking:
                if self._wanted == done:
                    self._serving = False
                    return
                done = self._wanted
            with contextlib.suppress(BackendError):
                self._make_wanted(pause=_give_way)

    def _make_wanted(self, pause: Callable[[], None] | None) -> None:
        for gates in self._wanted:
            with self._making:
                if self._gated is None:
                    return
                if gates not in self._special:
                    self._special[gates] = self._specialised(gates, pause)
                self._special.move_to_end(gates)
        with self._making:
            while len(self._special) > max(KEPT, len(self._wanted)):
                self._special.popitem(last=False)

    def _specialised(self, gates: Gates, pause: Callable[[], None] | None) -> Any:
        from edge_runtime.backends.onnx.passes import inline_gates

        inlined = inline_gates(self._read_skeleton(), self._gate_input, gates.vector(), pause=pause)
        return create_prepared(inlined.SerializeToString(), self._options, folder=self.folder)

    def _read_skeleton(self) -> Any:
        if self._skeleton is None:
            import onnx

            with foreign_errors("the prepared graph cannot be read"):
                self._skeleton = onnx.load(str(self.folder / SKELETON), load_external_data=False)
        return self._skeleton


def _give_way() -> None:
    """Hand the interpreter to whoever waits for it."""
    time.sleep(0)
