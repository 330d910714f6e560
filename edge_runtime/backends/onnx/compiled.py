"""The form that was prepared on this machine: every subnet in one mapped graph, the often-used ones on their own.

Tier 1 is the prepared gated graph; the weights of branches that do not run stay on the disk. Tier 2 are sessions of one
subnet each: the gates are inlined into the prepared skeleton, the weights are the same mapped file, and nothing is
optimised again, so that one is made in milliseconds. Where a model has layers of modules, tier 1 is fed the modules
that are on, gathered once for each subnet, and tier 2 is optimised anew. Which tier runs is looked up in each run.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.backends.base import (
    Array,
    SessionOptions,
    check_gates,
    check_inputs,
    random_inputs,
)
from edge_runtime.backends.features import FeatureCache
from edge_runtime.backends.onnx.heap import give_back_freed
from edge_runtime.backends.onnx.latest import Latest
from edge_runtime.backends.onnx.modules import ModuleInput
from edge_runtime.backends.onnx.parts import PreparedParts, open_parts
from edge_runtime.backends.onnx.prepare import outputs_agree
from edge_runtime.backends.onnx.prepared import PreparedGraph
from edge_runtime.backends.onnx.session import foreign_errors
from edge_runtime.bundle import Manifest, TensorSpec
from edge_runtime.errors import BackendError
from edge_runtime.gates import Gates

__all__ = ["CompiledSession"]

FRAME_SECONDS = 0.04
"""So long the frame after a swap has the machine for itself: only when it is answered a session of its own is made.
Each step of that waits so long for the frame that is running when it is due."""

POLL_SECONDS = 0.0005

CLOSE_SECONDS = 1.0
"""So long `close` waits for a session that is being made."""

KEPT = 3
"""Most specialised sessions that stay when none is held: the active subnet's, and former ones."""


class CompiledSession:
    """Implements `Session` over a prepared folder. Thread-safe.

    Args:
        folder: What `prepare` made; it has to stay while the session is open.
        manifest: Of the bundle.
        options: What the folder was prepared for.
        form: Which form it is, for people.
        specialises: Whether sessions of single subnets are quicker here.
        note: What the form is worth knowing of.
        modules: What the gated session is fed besides inputs and gates.
    """

    maps_weights = True

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        options: SessionOptions,
        *,
        form: str,
        specialises: bool,
        note: str = "",
        modules: Sequence[ModuleInput] = (),
    ) -> None:
        self.name = f"onnxruntime-{form}"
        self.note = note
        """What the form is worth knowing of, for people: why a quicker one was refused; empty where it is the best."""
        self.threads = options.threads
        self.inputs: tuple[TensorSpec, ...] = manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = manifest.outputs
        self.folder = folder
        """Where the prepared files are."""
        self.kept = KEPT
        """Specialised sessions that stay when none is held, at least 1: as many as their memory allows."""
        self.specialises = specialises
        """Whether sessions of single subnets are made."""
        self._manifest, self._space = manifest, manifest.space
        self._output_names = [spec.name for spec in manifest.outputs]
        self._graph: PreparedGraph | None = PreparedGraph(folder, manifest, options, modules)
        self._special: OrderedDict[Gates, Any] = OrderedDict()
        self._making = threading.Lock()
        self._active = manifest.space.default
        self._held: Counter[Gates] = Counter()
        self._asking = threading.Lock()
        self._answered = True
        """Whether the active subnet has answered since it became active. No event: setting one takes a lock in Python
        code, and a signal handler that raises there would leave it locked for good."""
        self._running: list[None] = []
        """One entry for each run of now; appending and popping need no lock."""
        self._background = Latest("nnf-edge-specialise", self._serve, give_back_freed)

    def run(self, inputs: Mapping[str, Array], gates: Gates) -> dict[str, Array]:
        """Run one subnet on one batch; see `Session.run`."""
        graph, special = self._open_graph(), self._special.get(gates)
        check_gates(self._space, gates)
        check_inputs(self.inputs, inputs)
        self._running.append(None)
        try:
            with foreign_errors(f"subnet {gates} could not be run"):
                if special is not None:
                    values = special.run(self._output_names, dict(inputs))
                else:
                    values = graph.gated.run(self._output_names, graph.feeds(inputs, gates))
        finally:
            self._running.pop()
            if gates == self._active:
                self._answered = True
        return dict(zip(self._output_names, values, strict=True))

    def prefer(self, gates: Gates) -> None:
        """Gather its modules, and make a session of this subnet alone in the background; see `Session.prefer`."""
        check_gates(self._space, gates)
        graph = self._graph
        if graph is not None and gates not in self._special:
            with contextlib.suppress(MemoryError):  # the run that needs them says so
                graph.gather(gates)
        with self._asking:
            self._active = gates
            if not self.specialises or self._graph is None or gates in self._special:
                return
            self._answered = False
            self._background.ask(gates)  # where no thread can be had, tier 1 serves it

    @contextlib.contextmanager
    def hold(self, subnets: Sequence[Gates]) -> Iterator[None]:
        """Make sessions of these subnets now and keep them meanwhile; see `Session.hold`."""
        for gates in subnets:
            check_gates(self._space, gates)
        with self._asking:
            self._held.update(subnets)
        try:
            for gates in subnets if self.specialises else ():
                self._make(gates)
            yield
        finally:
            with self._asking:
                self._held.subtract(subnets)
                self._held = +self._held
            self._trim()

    def in_parts(self) -> PreparedParts | None:
        """Parts that answered as the gated session in a run of each; see `Session.in_parts`."""
        with self._making:  # it reads the graph that single subnets are made of
            graph = self._open_graph()
            try:
                parts = open_parts(graph, self._manifest, self._open_graph)
                if parts is None or not self._answers_alike(graph, parts):
                    return None
            except Exception:  # whatever a library raises here, the gated session answers
                return None
        return parts

    def _answers_alike(self, graph: PreparedGraph, parts: PreparedParts) -> bool:
        """Compare a subnet whose every decision is really made, bit by bit."""
        inputs, gates = random_inputs(self.inputs, seed=0), self._space.default
        found = parts.run(inputs, gates, FeatureCache(0).of(0, 1))
        wanted = graph.gated.run(self._output_names, graph.feeds(inputs, gates, whole=False))
        return all(np.array_equal(one, other) for one, other in zip(wanted, found.values(), strict=True))

    def close(self) -> None:
        """Drop all native sessions; see `Session.close`."""
        self._graph = None
        self._background.stop()
        if self._making.acquire(timeout=CLOSE_SECONDS):  # else what is being made now sees that it is not wanted
            self._special.clear()
            self._making.release()

    @property
    def specialised(self) -> tuple[Gates, ...]:
        """The subnets that have a session of their own now."""
        with self._making:
            return tuple(self._special)

    def alone(self, gates: Gates, *, profile_prefix: Path) -> Any:
        """A new native session of one subnet that writes a profile; compared with nothing, and not kept here."""
        with self._making:
            return self._specialise(gates, profile_prefix)

    def gated(self, *, profile_prefix: Path) -> Any:
        """A new native gated session that writes a profile; it is not kept here."""
        return self._open_graph().open_gated(profile_prefix)

    def feeds(self, inputs: Mapping[str, Array], gates: Gates, *, whole: bool = True) -> dict[str, Array]:
        """What the gated session takes to run one subnet; without `whole` every decision is really made."""
        return self._open_graph().feeds(inputs, gates, whole=whole)

    def decisions(self) -> dict[str, int]:
        """The group that each node of a subnet alone belongs to, by node name; other nodes belong to none."""
        with self._making:
            return self._open_graph().decisions()

    def _serve(self, gates: Gates) -> None:
        """Make what became active, after the frame that is waiting for it."""
        self._wait_while(lambda: not self._answered)
        self._make(gates, lambda: self._wait_while(lambda: bool(self._running)))
        self._trim()

    def _wait_while(self, busy: Callable[[], bool]) -> None:
        stop_s = time.monotonic() + FRAME_SECONDS
        while busy() and self._graph is not None and time.monotonic() < stop_s:
            time.sleep(POLL_SECONDS)

    def _make(self, gates: Gates, before_each: Callable[[], None] = lambda: None) -> None:
        """A session of one subnet, compared with the gated one; where that fails, tier 1 serves it.

        `before_each` is called before each step that takes as long as a frame or longer.
        """
        with self._making:
            graph = self._graph
            if graph is None:
                return
            if gates not in self._special:
                try:
                    before_each()
                    special = self._specialise(gates)
                    self._compare(graph, special, gates, before_each)
                except Exception:  # whatever a library raises here, the gated session answers
                    return
                if self._graph is None:  # closed meanwhile
                    self._special.clear()
                    return
                self._special[gates] = special
            self._special.move_to_end(gates)

    def _trim(self) -> None:
        """Drop the oldest sessions that are neither active nor held."""
        with self._making:
            with self._asking:
                spare = [gates for gates in self._special if gates != self._active and self._held[gates] <= 0]
            dropped = [self._special.pop(gates) for gates in spare[: max(0, len(self._special) - self.kept)]]
        del dropped  # the library takes a while for it, and a swap shall not wait

    def _specialise(self, gates: Gates, profile_prefix: Path | None = None) -> Any:
        return self._open_graph().alone(gates, pause=_give_way, profile_prefix=profile_prefix)

    def _open_graph(self) -> PreparedGraph:
        graph = self._graph
        if graph is None:
            raise BackendError("the session is closed", hint="open the model again")
        return graph

    def _compare(self, graph: PreparedGraph, special: Any, gates: Gates, before_each: Callable[[], None]) -> None:
        """One run of each, which also brings the new session's weights into memory."""
        inputs = random_inputs(self.inputs, seed=0)
        before_each()
        found = special.run(self._output_names, inputs)
        before_each()
        wanted = graph.gated.run(self._output_names, graph.feeds(inputs, gates))
        if not outputs_agree(wanted, found):
            raise BackendError(f"subnet {gates} alone answers otherwise")


def _give_way() -> None:
    """Hand the interpreter to whoever waits for it."""
    time.sleep(0)
