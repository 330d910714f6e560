"""Sessions of the parts of a prepared graph, run one behind the other from the last one whose input is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edge_runtime.backends.base import Array, Beginning, SharedFeatures, check_gates, check_inputs
from edge_runtime.backends.onnx.passes.decisions import Decisions
from edge_runtime.backends.onnx.passes.parts import Part
from edge_runtime.backends.onnx.prepared import PreparedGraph
from edge_runtime.backends.onnx.session import foreign_errors
from edge_runtime.bundle import Manifest
from edge_runtime.gates import Gates

__all__ = ["PreparedParts", "open_parts"]


class PreparedParts:
    """Implements `SessionParts`.

    Args:
        parts: In their order, with a native session of each.
        decisions: How the vector that they are fed is made.
        manifest: Of the bundle.
        check_open: Raises where the session that was cut is closed.
    """

    def __init__(
        self,
        parts: list[tuple[Part, Any]],
        decisions: Decisions,
        manifest: Manifest,
        check_open: Callable[[], object],
    ) -> None:
        self._parts, self._decisions, self._space = parts, decisions, manifest.space
        self._inputs, self._outputs = manifest.inputs, [spec.name for spec in manifest.outputs]
        self._check_open = check_open
        self._takes = [{value.name for value in session.get_inputs()} for _, session in parts]

    def run(self, inputs: Mapping[str, Array], gates: Gates, features: SharedFeatures) -> dict[str, Array]:
        """Run a subnet from the longest of its beginnings that is known; see `SessionParts.run`."""
        self._check_open()
        check_gates(self._space, gates)
        check_inputs(self._inputs, inputs)
        vector = self._decisions.vector(gates.vector(), whole=False)
        numbered = enumerate(part.bits for part, _ in self._parts)
        beginnings = [(place, *(int(vector[1 + bit]) for bit in bits)) for place, bits in numbered]
        first, known = self._known(beginnings, features)
        fed = {**inputs, self._decisions.name: vector}
        with foreign_errors(f"subnet {gates} could not be run in parts"):
            for place in range(first, len(self._parts)):
                part, session = self._parts[place]
                values = {**fed, part.taken: known} if part.taken else fed
                taken = {name: value for name, value in values.items() if name in self._takes[place]}
                if not part.given:
                    return dict(zip(self._outputs, session.run(self._outputs, taken), strict=True))
                known = session.run([part.given], taken)[0]
                features.put(beginnings[place], known)
        raise AssertionError("the last part gives the outputs")

    def _known(self, beginnings: list[Beginning], features: SharedFeatures) -> tuple[int, Array | None]:
        """The first part that has to run, and what it takes."""
        for place in range(len(beginnings) - 1, 0, -1):
            value = features.get(beginnings[place - 1])
            if value is not None:
                return place, value
        return 0, None


def open_parts(graph: PreparedGraph, manifest: Manifest, check_open: Callable[[], object]) -> PreparedParts | None:
    """Cut a prepared graph and open the parts; None where it has no place for a cut. Raises `BackendError`."""
    found = graph.parts()
    if found is None:
        return None
    parts, decisions = found
    opened = [(part, graph.open_part(part)) for part in parts]
    return PreparedParts(opened, decisions, manifest, check_open)
