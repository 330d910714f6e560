"""One operator by our own shape rules and by onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import assume
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.backends import open_static
from edge_runtime.backends.onnx.shapes import RULES
from edge_runtime.backends.onnx.values import Value
from edge_runtime.errors import BundleError

__all__ = ["agree"]


def agree(op: str, tensors: list[tuple[int, ...]], stored: list[Any], attributes: dict[str, Any]) -> None:
    """Assert that both give one shape for activations [2, *tensor] and stored tensors, None where one is left out.

    What our rule refuses ends a hypothesis example: only what passes has to be right.
    """
    assert infer(op, tensors, stored, attributes) == run_one(op, tensors, stored, attributes)


def run_one(op: str, tensors: list[tuple[int, ...]], stored: list[Any], attributes: dict[str, Any]) -> tuple[int, ...]:
    """The output shape that onnxruntime gives for one operator on activations [2, ...] and stored tensors."""
    names = [f"x{i}" for i in range(len(tensors))]
    inputs = [helper.make_tensor_value_info(n, 1, ["N", *shape]) for n, shape in zip(names, tensors, strict=True)]
    weights = [numpy_helper.from_array(np.asarray(w), f"w{i}") for i, w in enumerate(stored) if w is not None]
    stored_names = [f"w{i}" if w is not None else "" for i, w in enumerate(stored)]
    made = helper.make_node(op, [*names, *stored_names], ["y"], "op", **attributes)
    output = onnx.ValueInfoProto(name="y")
    output.type.tensor_type.elem_type = TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph([made], "g", inputs, [output], weights), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    session = open_static(model.SerializeToString())
    feeds = {n: np.ones((2, *shape), np.float32) for n, shape in zip(names, tensors, strict=True)}
    return tuple(session.run(feeds)["y"].shape)


def infer(op: str, tensors: list[tuple[int, ...]], stored: list[Any], attributes: dict[str, Any]) -> tuple[int, ...]:
    """The same by our own rules; a refusal ends the example, for only what passes must be right."""
    values: list[Value | None] = [Value("float32", (None, *shape)) for shape in tensors]
    for weight in stored:
        values.append(None if weight is None else known(np.asarray(weight)))
    rule = RULES[op]
    full = {name: attribute.default for name, attribute in rule.attributes.items()}
    full |= {name: tuple(v) if isinstance(v, list) else v for name, v in attributes.items()}
    try:
        shape = rule.infer(full, values).shape
    except BundleError:
        assume(False)
        raise
    assert shape[0] is None
    return (2, *(int(size or 0) for size in shape[1:]))


def known(weight: Any) -> Value:
    constants = tuple(weight.ravel().tolist()) if weight.size <= 16 else None
    return Value(weight.dtype.name, weight.shape, constants=constants, stored=True)
