"""Activations that a blocked convolution applies to its own result, in the words that onnxruntime uses for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Activation", "Activations"]

_FLOAT, _STRING, _FLOATS = 1, 3, 6
"""Of TensorProto.DataType; of AttributeProto.AttributeType."""

_LIMITS = (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max))
"""Bounds of a Clip that names none."""


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation as attributes of a convolution."""

    name: str
    """Example: ``Clip``."""

    parameters: tuple[float, ...] = ()
    """Lower and upper bound of a Clip; empty for a Relu."""

    def give_to(self, convolution: Any) -> None:
        """Let a blocked Conv apply it after its sum."""
        convolution.attribute.add(name="activation", type=_STRING, s=self.name.encode())
        if self.parameters:
            convolution.attribute.add(name="activation_params", type=_FLOATS, floats=self.parameters)


class Activations:
    """Knows the constant bounds of a model's Clips.

    Args:
        tensors: TensorProtos of all its graphs, names unique; external ones are not read.
    """

    def __init__(self, tensors: Iterable[Any]) -> None:
        self._scalars = {tensor.name: tensor for tensor in tensors if _is_scalar(tensor)}

    def of(self, node: Any) -> Activation | None:
        """What a convolution has to apply in place of a node; None where it cannot."""
        if node.op_type == "Relu":
            return Activation("Relu")
        if node.op_type != "Clip" or node.attribute:  # the bounds were attributes before opset 11
            return None
        names = [*node.input[1:], "", ""][:2]
        if any(name and name not in self._scalars for name in names):
            return None
        low, high = (self._read(name) if name else limit for name, limit in zip(names, _LIMITS, strict=True))
        return Activation("Clip", (low, high)) if low <= high else None

    def _read(self, name: str) -> float:
        from onnx import numpy_helper

        return float(numpy_helper.to_array(self._scalars[name]).item())


def _is_scalar(tensor: Any) -> bool:
    inside = tensor.data_location != tensor.EXTERNAL
    return bool(inside and tensor.data_type == _FLOAT and all(size == 1 for size in tensor.dims))
