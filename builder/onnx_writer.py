"""Nodes and weights of one ONNX model in the making: unique names, outer initializers, one external weight file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

__all__ = ["GraphWriter"]

OPSET = 17
IR_VERSION = 8
EXTERNAL_FROM_BYTES = 1024
WEIGHTS_FILE = "weights.bin"


class GraphWriter:
    """Collects nodes into the innermost open scope, and initializers into the outer graph that all branches see.

    Args:
        external: whether large tensors go to the weight file.
        shared: whether tensors of the same content are stored once, under the name that came first; whole numbers for
            shapes are not.
    """

    def __init__(self, *, external: bool = True, shared: bool = False) -> None:
        self.weights = bytearray()
        self._external, self._shared = external, shared
        self._initializers: dict[str, TensorProto] = {}
        self._stored: dict[tuple[str, object], str] = {}
        self._scopes: list[list[onnx.NodeProto]] = [[]]
        self._names: set[str] = set()

    def unique(self, wanted: str) -> str:
        """`wanted`, with a number behind it where the name is taken."""
        name, count = wanted, 1
        while name in self._names:
            name, count = f"{wanted}_{count}", count + 1
        self._names.add(name)
        return name

    def initializer(self, name: str, values: npt.NDArray[Any]) -> str:
        """Store a tensor once and give its name back: `name`, with a number behind it where others have that."""
        values = np.asarray(values, order="C")
        content = (values.shape, values.dtype.str, hashlib.sha256(values).digest())
        key = ("" if self._shared and values.ndim and values.dtype != np.int64 else name, content)
        known = self._stored.get(key)
        if known is None:
            known = self._stored[key] = self.unique(name)
            self._initializers[known] = self._tensor(known, values)
        return known

    def scalar(self, value: int) -> str:
        """An int64 scalar constant."""
        return self.initializer(f"int_{value}", np.array(value, np.int64))

    def node(
        self, op: str, inputs: Sequence[str], name: str, attributes: dict[str, Any] | None = None, *, output: str = ""
    ) -> str:
        """Append a node to the open scope; its one output is named after it unless `output` says otherwise."""
        name = self.unique(name)
        output = output or self.unique(f"{name}.out")
        self._scopes[-1].append(helper.make_node(op, list(inputs), [output], name, **(attributes or {})))
        return output

    def open_branch(self) -> None:
        """Send nodes to a new `If` branch until `close_branch`."""
        self._scopes.append([])

    def close_branch(self, name: str, output: str, shape: Sequence[int]) -> onnx.GraphProto:
        """End the innermost branch, whose value is `output` of shape [N, *shape]."""
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", *shape])
        return helper.make_graph(self._scopes.pop(), name, [], [value])

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], name: str
    ) -> onnx.ModelProto:
        """The finished model; its external tensors are in `weights`."""
        graph = helper.make_graph(self._scopes[0], name, inputs, outputs, list(self._initializers.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="nnf-edge")
        model.ir_version = IR_VERSION
        return model

    def _tensor(self, name: str, values: npt.NDArray[Any]) -> TensorProto:
        raw = values.tobytes()
        tensor = TensorProto(name=name, dims=values.shape, data_type=helper.np_dtype_to_tensor_dtype(values.dtype))
        if len(raw) < EXTERNAL_FROM_BYTES or not self._external:
            tensor.raw_data = raw
            return tensor
        tensor.data_location = TensorProto.EXTERNAL
        self.weights += bytes(-len(self.weights) % values.itemsize)
        for key, value in (("location", WEIGHTS_FILE), ("offset", len(self.weights)), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        self.weights += raw
        return tensor
