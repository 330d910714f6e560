"""Functions of single elements, and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from builder.export.lower.table import translates
from builder.export.lower.values import Value, Weight, axis_of

if TYPE_CHECKING:
    from builder.export.lower.walk import Lowering

__all__ = ["clip"]

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805
_GELU_CUBIC = 0.044715


def _plain(op: str) -> Callable[..., str]:
    """The ONNX operator `op` of one input; further arguments only say whether torch works in place."""
    return lambda low, x, *_, inplace=False: low.emit(op, [x.name])


for _name, _op in {
    "exp": "Exp",
    "erf": "Erf",
    "hardswish": "HardSwish",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}.items():
    translates(_name)(_plain(_op))


def clip(low: Lowering, x: Value, least: float | None, most: float | None) -> str:
    """Bounded below and above, or on one side where the other is None."""
    bounds = [low.scalar(bound) if bound is not None else "" for bound in (least, most)]
    return low.emit("Clip", [x.name, *(bounds if bounds[1] else bounds[:1])])


@translates("relu6")
def _relu6(low: Lowering, x: Value, inplace: bool = False) -> str:
    return clip(low, x, 0, 6)


@translates("hardtanh")
def _hardtanh(low: Lowering, x: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> str:
    return clip(low, x, min_val, max_val)


@translates("clamp", "clip")
def _clamp(low: Lowering, x: Value, min: Any = None, max: Any = None) -> str:
    if isinstance(min, Value | Weight) or isinstance(max, Value | Weight):
        raise low.refusal("has bounds that are tensors", "give numbers")
    return clip(low, x, min, max)


@translates("hardsigmoid")
def _hardsigmoid(low: Lowering, x: Value, inplace: bool = False) -> str:
    return low.emit("HardSigmoid", [x.name], {"alpha": 1 / 6, "beta": 0.5})


@translates("silu")
def _silu(low: Lowering, x: Value, inplace: bool = False) -> str:
    return low.emit("Mul", [x.name, low.emit("Sigmoid", [x.name], part="sigmoid")])


@translates("mish")
def _mish(low: Lowering, x: Value, inplace: bool = False) -> str:
    soft = low.emit("Softplus", [x.name], part="softplus")
    return low.emit("Mul", [x.name, low.emit("Tanh", [soft], part="tanh")])


@translates("softplus")
def _softplus(low: Lowering, x: Value, beta: float = 1.0, threshold: float = 20.0) -> str:
    if beta == 1:
        return low.emit("Softplus", [x.name])
    soft = low.emit("Softplus", [low.emit("Mul", [x.name, low.scalar(beta)], part="scaled")], part="softplus")
    return low.emit("Div", [soft, low.scalar(beta)])


@translates("leaky_relu")
def _leaky_relu(low: Lowering, x: Value, negative_slope: float = 0.01, inplace: bool = False) -> str:
    return low.emit("LeakyRelu", [x.name], {"alpha": float(negative_slope)})


@translates("prelu")
def _prelu(low: Lowering, x: Value, weight: Weight) -> str:
    if weight.tensor.numel() == 1:
        return low.emit("LeakyRelu", [x.name], {"alpha": float(weight.tensor)})
    slopes = Weight(f"{weight.label}.slopes", weight.tensor.reshape(-1, *[1] * (len(x.shape) - 2)))
    return low.emit("PRelu", [x.name, low.store(slopes)])


@translates("elu")
def _elu(low: Lowering, x: Value, alpha: float = 1.0, *_: Any, inplace: bool = False) -> str:
    return low.emit("Elu", [x.name], {"alpha": float(alpha)})


@translates("selu")
def _selu(low: Lowering, x: Value, inplace: bool = False) -> str:
    out = low.emit("Elu", [x.name], {"alpha": _SELU_ALPHA}, part="elu")
    return low.emit("Mul", [out, low.scalar(_SELU_SCALE)])


@translates("celu")
def _celu(low: Lowering, x: Value, alpha: float = 1.0, inplace: bool = False) -> str:
    out = low.emit("Div", [x.name, low.scalar(alpha)], part="scaled")
    out = low.emit("Elu", [out], {"alpha": 1.0}, part="elu")
    return low.emit("Mul", [out, low.scalar(alpha)])


@translates("gelu")
def _gelu(low: Lowering, x: Value, approximate: str = "none") -> str:
    """In the form that onnxruntime fuses; the approximation by tanh(z) as ``x * sigmoid(2 z)``, which is the same."""
    if approximate == "tanh":
        square = low.emit("Mul", [x.name, x.name], part="square")
        factor = 2 * math.sqrt(2 / math.pi)
        inner = low.emit("Mul", [square, low.scalar(factor * _GELU_CUBIC)], part="cubic")
        inner = low.emit("Add", [inner, low.scalar(factor)], part="sum")
        inner = low.emit("Mul", [inner, x.name], part="inner")
        return low.emit("Mul", [x.name, low.emit("Sigmoid", [inner], part="sigmoid")])
    out = low.emit("Div", [x.name, low.scalar(math.sqrt(2))], part="scaled")
    out = low.emit("Add", [low.emit("Erf", [out], part="erf"), low.scalar(1)], part="sum")
    return low.emit("Mul", [low.emit("Mul", [x.name, out], part="gate"), low.scalar(0.5)])


@translates("softmax")
def _softmax(low: Lowering, x: Value, dim: int | None = None, *_: Any, **__: Any) -> str:
    axis = axis_of(dim, len(x.shape)) if dim is not None else 0
    if axis < 1:
        raise low.refusal(f"works along the dimension {dim}", "name one that is not the batch")
    return low.emit("Softmax", [x.name], {"axis": axis})
