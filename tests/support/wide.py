"""The tiny bundle with a chain of every further operator that a graph may hold, between its last unit and its head."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from tests.support.tiny import CHANNELS, TinyParts, tiny_parts

__all__ = ["wide_parts"]

Step = tuple[str, list[Any], dict[str, Any]]


def wide_parts() -> TinyParts:
    """Fresh parts; the chain starts at ``h2`` [N, 16, 16, 16] and what it ends with is pooled in its place."""
    parts = tiny_parts()
    graph = parts.model.graph
    at = next(index for index, node in enumerate(graph.node) if node.name == "pool")
    value = "h2"
    for number, (op, stored, attributes) in enumerate(_steps()):
        names = [_stored(graph, f"wide{number}.{index}", each, value) for index, each in enumerate(stored)]
        node = helper.make_node(op, [value, *names], [f"wide{number}.out"], f"wide{number}", **attributes)
        graph.node.insert(at + number, node)
        value = node.output[0]
    graph.node[at + len(_steps())].input[0] = value
    return parts


def _stored(graph: Any, name: str, values: Any, value: str) -> str:
    """The name of an input: of an initializer, of the chain's own value, of an earlier one, or of nothing."""
    if not isinstance(values, np.ndarray):
        return value if values is _AGAIN else str(values)
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


_AGAIN = object()


def _steps() -> list[Step]:
    c = CHANNELS
    vector, column = np.linspace(0.5, 1.5, c, dtype=np.float32), np.full((c, 1, 1), 0.25, np.float32)
    scale, zero, whole = np.array(0.05, np.float32), np.array(7, np.uint8), np.full((c, c, 1, 1), 3, np.int8)
    matrix = np.linspace(-1, 1, c * c, dtype=np.float32).reshape(c, c)
    half = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    twice = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return [
        ("Reshape", [_ints(0, 4, 4, 16, 16)], {}),
        ("Transpose", [], {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", [_ints(0, c, 16, 16)], {}),
        ("Slice", [_ints(0, 2), _ints(8, 16), _ints(1, 2), _ints(1, 1)], {}),
        ("Concat", [_AGAIN], {"axis": 1}),
        ("Pad", [_ints(0, 0, 1, 0, 0, 0, 1, 0)], {}),
        ("Resize", ["", np.array([1, 1, 0.5, 0.5], np.float32)], half),
        ("Resize", ["", np.array([1, 1, 2, 2], np.float32)], twice),
        ("LRN", [], {"size": 3}),
        ("LeakyRelu", [], {"alpha": 0.1}),
        ("PRelu", [column], {}),
        ("Elu", [], {"alpha": 0.5}),
        ("Sub", [column], {}),
        ("Tanh", [], {}),
        ("InstanceNormalization", [vector, vector], {"epsilon": 1e-5}),
        ("Transpose", [], {"perm": [0, 2, 3, 1]}),
        ("LayerNormalization", [vector, vector], {"axis": 3, "epsilon": 1e-5}),
        ("MatMul", [matrix], {}),
        ("Erf", [], {}),
        ("Softmax", [], {"axis": 3}),
        ("Transpose", [], {"perm": [0, 3, 1, 2]}),
        ("Exp", [], {}),
        ("Sqrt", [], {}),
        ("Softplus", [], {}),
        ("Div", [column], {}),
        ("MaxPool", [], {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "strides": [2, 2]}),
        ("QuantizeLinear", [scale, zero], {}),
        (
            "QLinearConv",
            [scale, zero, whole, vector, np.array(0, np.int8), scale, zero, np.arange(c, dtype=np.int32)],
            {},
        ),
        ("DequantizeLinear", [scale, zero], {}),
        ("ReduceSum", [_ints(3)], {"keepdims": 1}),
        ("ReduceMax", [], {"axes": [2], "keepdims": 1}),
        ("Expand", [_ints(1, c, 3, 5)], {}),
    ]


def _ints(*values: int) -> Any:
    return np.array(values, np.int64)
