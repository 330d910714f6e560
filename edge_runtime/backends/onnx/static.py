"""A plain ONNX graph without gates: the oracle's static export, the yardstick of every latency figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from edge_runtime.backends.base import Array, SessionOptions, check_inputs
from edge_runtime.backends.onnx.session import create_native, foreign_errors
from edge_runtime.bundle import TensorSpec
from edge_runtime.errors import BackendError
from edge_runtime.gates import Gates

__all__ = ["StaticSession", "open_static"]

DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


class StaticSession:
    """Implements `Session` for a graph that has nothing to switch: gates are accepted and mean nothing."""

    name = "onnxruntime-static"
    maps_weights = False

    def __init__(self, native: Any, options: SessionOptions) -> None:
        self._native = native
        self.threads = options.threads
        self.inputs = tuple(_spec(value) for value in native.get_inputs())
        self.outputs = tuple(_spec(value) for value in native.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, inputs: Mapping[str, Array], gates: Gates | None = None) -> dict[str, Array]:
        """Run the graph on one batch; see `Session.run`."""
        native = self._native
        if native is None:
            raise BackendError("the session is closed", hint="open the model again")
        check_inputs(self.inputs, inputs)
        with foreign_errors("the static graph could not be run"):
            values = native.run(self._output_names, dict(inputs))
        return dict(zip(self._output_names, values, strict=True))

    def prefer(self, gates: Gates) -> None:
        """There is nothing to prefer; see `Session.prefer`."""

    def hold(self, subnets: Sequence[Gates]) -> AbstractContextManager[None]:
        """There is nothing to prefer; see `Session.hold`."""
        return nullcontext()

    def close(self) -> None:
        """Drop the native session; see `Session.close`."""
        self._native = None


def open_static(model_bytes: bytes, options: SessionOptions, *, weights: bytes = b"") -> StaticSession:
    """Load a plain graph from bytes, at ORT_ENABLE_ALL; see `edge_runtime.backends.open_static`."""
    return StaticSession(create_native(model_bytes, weights, options), options)


def _spec(value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorSpec(value.name, DTYPES.get(value.type, value.type), shape)
