"""One subnet out of the gated graph: decisions that the gates settle are made here, and their nodes go away.

What is left is the node list that onnxruntime would have made of a static export of the same subnet. Weights are
neither read nor copied: the new model refers to the same external file. Only weights of which the gates pick channels
are read, and what is picked is inside the new model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edge_runtime.backends.base import Array
from edge_runtime.backends.onnx.passes.names import integer_of
from edge_runtime.errors import BackendError

__all__ = ["inline_gates"]

_MOST_KNOWN = 2**14
"""Elements of a constant that may take part in a decision: one for each channel of a layer of modules."""


def inline_gates(
    model: Any,
    settled: Mapping[str, Array],
    *,
    pause: Callable[[], None] | None = None,
    read: Callable[[Any], Array] | None = None,
) -> Any:
    """A new ModelProto without the inputs that say which subnet it is, for one subnet.

    Args:
        model: The gated model, value names unique; it is not changed.
        settled: Those inputs by name: the int64 gate vector, or what was decided of it.
        pause: Called after every node; in a background thread it lets the foreground have the interpreter.
        read: Gives the value of a TensorProto; None: those inside the model are read, and no file is.

    Raises:
        BackendError: The gates do not settle a decision of the graph.
    """
    import onnx

    flat = _Flat(model.graph, settled, pause, read)
    flat.graph(model.graph)
    made = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    made.opset_import.extend(model.opset_import)
    made.graph.name = model.graph.name
    made.graph.input.extend(value for value in model.graph.input if value.name not in settled)
    made.graph.output.extend(model.graph.output)
    flat.write(made.graph)
    return made


class _Flat:
    """The nodes of the chosen branches in one list."""

    def __init__(
        self,
        graph: Any,
        settled: Mapping[str, Array],
        pause: Callable[[], None] | None,
        read: Callable[[Any], Array] | None,
    ) -> None:
        from onnx import NodeProto

        self._node_type, self._pause, self._read = NodeProto, pause, read
        self._known: dict[str, Array] = dict(settled)
        self._alias: dict[str, str] = {}
        self._tensors: dict[str, Any] = {}
        self._nodes: list[Any] = []
        self._outputs = [value.name for value in graph.output]

    def graph(self, graph: Any) -> None:
        """Take over a graph's tensors and nodes, in order."""
        for tensor in graph.initializer:
            self._tensors[tensor.name] = tensor
            small = tensor.data_type in (tensor.INT64, tensor.BOOL) and _elements(tensor) <= _MOST_KNOWN
            if small and (self._read or tensor.data_location != tensor.EXTERNAL):
                self._known[tensor.name] = self._value(tensor)
        for node in graph.node:
            self._node(node)
            if self._pause:
                self._pause()

    def write(self, graph: Any) -> None:
        """Put the nodes and the tensors that they use into an empty graph."""
        from onnx.numpy_helper import from_array

        used = {name for node in self._nodes for name in node.input}
        for name in self._outputs:
            if (source := self._resolve(name)) != name:
                copy = self._node_type(op_type="Identity", input=[source], output=[name], name=f"{name}~copy")
                self._nodes.append(copy)
                used.add(source)
        graph.node.extend(self._nodes)
        graph.initializer.extend(tensor for name, tensor in self._tensors.items() if name in used)
        computed = sorted(name for name in used if name in self._known and name not in self._tensors)
        graph.initializer.extend(from_array(self._known[name], name) for name in computed)

    def _node(self, node: Any) -> None:
        inputs = [self._resolve(name) for name in node.input]
        if node.op_type == "If":
            self._decide(node, inputs[0])
        elif node.op_type in _EVALUATED and all(name in self._known for name in inputs):
            values = _EVALUATED[node.op_type](node, [self._known[name] for name in inputs])
            self._known.update(zip(node.output, values, strict=True))
        elif node.op_type == "Compress" and inputs[0] in self._tensors and inputs[1] in self._known:
            weight = self._value(self._tensors[inputs[0]])
            self._known[node.output[0]] = np.compress(self._known[inputs[1]], weight, integer_of(node, "axis"))
        elif node.op_type == "Identity":
            self._alias[node.output[0]] = inputs[0]
        else:
            copy = self._node_type()
            copy.CopyFrom(node)
            copy.input[:] = inputs
            self._nodes.append(copy)

    def _decide(self, node: Any, condition: str) -> None:
        if condition not in self._known:
            raise BackendError(
                f"the gates do not settle the decision {node.name[:80]!r}", hint="prepare the model again"
            )
        wanted = "then_branch" if bool(self._known[condition]) else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
        self.graph(branch)
        for outer, inner in zip(node.output, branch.output, strict=True):
            self._alias[outer] = self._resolve(inner.name)

    def _value(self, tensor: Any) -> Array:
        from onnx import numpy_helper

        return self._read(tensor) if self._read else numpy_helper.to_array(tensor)

    def _resolve(self, name: str) -> str:
        while name in self._alias:
            name = self._alias[name]
        return name


def _elements(tensor: Any) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _axes(node: Any, inputs: list[Array]) -> tuple[int, ...]:
    """The axes of a Squeeze: its second input, or its attribute before opset 13."""
    if len(inputs) > 1:
        return tuple(int(axis) for axis in inputs[1])
    found = [tuple(attribute.ints) for attribute in node.attribute if attribute.name == "axes"]
    return found[0] if found else tuple(axis for axis, size in enumerate(inputs[0].shape) if size == 1)


def _gather(node: Any, inputs: list[Array]) -> list[Array]:
    return [np.take(inputs[0], inputs[1], axis=integer_of(node, "axis"))]


def _cast(node: Any, inputs: list[Array]) -> list[Array]:
    from onnx import helper

    return [inputs[0].astype(helper.tensor_dtype_to_np_dtype(integer_of(node, "to")))]


def _split(node: Any, inputs: list[Array]) -> list[Array]:
    """One Split is what onnxruntime of the Gathers that take the gate vector apart."""
    axis, count = integer_of(node, "axis"), len(node.output)
    sizes = inputs[1] if len(inputs) > 1 else [inputs[0].shape[axis] // count] * count
    return np.split(inputs[0], np.cumsum(sizes)[:-1], axis)


_EVALUATED: Mapping[str, Callable[[Any, list[Array]], list[Array]]] = {
    "Cast": _cast,
    "Gather": _gather,
    "Split": _split,
    "Squeeze": lambda node, inputs: [np.squeeze(inputs[0], _axes(node, inputs))],
    "Equal": lambda _, inputs: [np.equal(*inputs)],
    "Less": lambda _, inputs: [np.less(*inputs)],
    "Not": lambda _, inputs: [np.logical_not(inputs[0])],
}
"""What is computed here where all inputs are known; gives the value of each output."""
