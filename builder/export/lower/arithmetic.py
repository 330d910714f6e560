"""Sums and products of activations, constants and numbers; linear layers; reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from builder.export.lower.pooling import reduced_axes
from builder.export.lower.table import translates
from builder.export.lower.values import Value, Weight

if TYPE_CHECKING:
    from builder.export.lower.walk import Lowering

__all__ = ["linear"]

Operand = Value | Weight | int | float


def _binary(low: Lowering, op: str, one: Operand, other: Operand) -> Any:
    """`op` of two operands; a number that changes nothing gives the other operand back."""
    neutral = 0 if op in ("Add", "Sub") else 1
    if isinstance(one, Value) and not isinstance(other, Value | Weight) and other == neutral:
        return one
    if isinstance(other, Value) and op in ("Add", "Mul") and not isinstance(one, Value | Weight) and one == neutral:
        return other
    values = [each for each in (one, other) if isinstance(each, Value)]
    if len({len(value.shape) for value in values}) > 1:
        raise low.refusal(f"joins tensors of the shapes {[value.shape for value in values]}", "unsqueeze one of them")
    return low.emit(op, [_operand(low, one), _operand(low, other)])


def _operand(low: Lowering, given: Operand) -> str:
    if isinstance(given, Value):
        return given.name
    if not isinstance(given, Weight):
        return low.scalar(given)
    if given.tensor.dim() == len(low.shape) and given.tensor.shape[0] != 1:
        raise low.refusal("has a constant with a batch dimension of its own", "make its first dimension 1")
    return low.store(given)


def _scaled(low: Lowering, given: Operand, factor: float) -> Operand:
    if factor == 1:
        return given
    if isinstance(given, Value):
        return Value(low.emit("Mul", [given.name, low.scalar(factor)], part="scaled"), given.shape)
    return Weight(f"{given.label}.scaled", given.tensor * factor) if isinstance(given, Weight) else given * factor


@translates("add")
def _add(low: Lowering, one: Operand, other: Operand, *, alpha: float = 1) -> Any:
    return _binary(low, "Add", one, _scaled(low, other, alpha))


@translates("sub", "subtract")
def _sub(low: Lowering, one: Operand, other: Operand, *, alpha: float = 1) -> Any:
    return _binary(low, "Sub", one, _scaled(low, other, alpha))


@translates("rsub")
def _rsub(low: Lowering, one: Operand, other: Operand, *, alpha: float = 1) -> Any:
    return _binary(low, "Sub", other, _scaled(low, one, alpha))


@translates("mul", "multiply")
def _mul(low: Lowering, one: Operand, other: Operand) -> Any:
    return _binary(low, "Mul", one, other)


@translates("div", "divide", "true_divide")
def _div(low: Lowering, one: Operand, other: Operand, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        raise low.refusal(f"rounds by {rounding_mode!r}", "divide without rounding")
    return _binary(low, "Div", one, other)


@translates("neg", "negative")
def _neg(low: Lowering, x: Value) -> Any:
    return _binary(low, "Mul", x, -1)


@translates("square")
def _square(low: Lowering, x: Value) -> str:
    return low.emit("Mul", [x.name, x.name])


@translates("pow")
def _pow(low: Lowering, x: Operand, exponent: Operand) -> str:
    if isinstance(x, Value) and exponent == 2:
        return _square(low, x)
    if isinstance(x, Value) and exponent == 0.5:
        return low.emit("Sqrt", [x.name])
    raise low.refusal("has an exponent other than 2 and 0.5", "write it as products")


@translates("reciprocal")
def _reciprocal(low: Lowering, x: Value) -> str:
    return low.emit("Div", [low.scalar(1), x.name])


@translates("rsqrt")
def _rsqrt(low: Lowering, x: Value) -> str:
    return low.emit("Div", [low.scalar(1), low.emit("Sqrt", [x.name], part="sqrt")])


@translates("sum")
def _sum(low: Lowering, x: Value, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> str:
    axes = low.integers(reduced_axes(low, x, dim))
    return low.emit("ReduceSum", [x.name, axes], {"keepdims": int(keepdim)})


@translates("amax")
def _amax(low: Lowering, x: Value, dim: int | Sequence[int] = (), keepdim: bool = False) -> str:
    return low.emit("ReduceMax", [x.name], {"axes": reduced_axes(low, x, dim), "keepdims": int(keepdim)})


@translates("max")
def _max(low: Lowering, x: Value, dim: int | None = None, keepdim: bool = False) -> list[str | None]:
    if dim is None or low.parts()[1] is not None:
        raise low.refusal("is of two tensors, or gives indices", "use amax over one dimension")
    return [_amax(low, x, dim, keepdim), None]


@translates("linear")
def linear(low: Lowering, x: Value, weight: Weight, bias: Weight | None = None) -> str:
    """``torch.nn.functional.linear``: Gemm on [N, K], else a product along the last dimension."""
    if len(x.shape) > 2:
        return _product(low, x, Weight(f"{weight.label}.T", weight.tensor.t()), bias)
    inputs = [x.name, low.store(weight), *([low.store(bias)] if bias is not None else [])]
    return low.emit("Gemm", inputs, {"transB": 1})


@translates("matmul")
def _matmul(low: Lowering, x: Value, weight: Weight) -> str:
    return _product(low, x, weight, None)


def _product(low: Lowering, x: Value, weight: Weight, bias: Weight | None) -> str:
    """Activations [N, .., K] times a constant matrix [K, M], plus a constant vector [M]."""
    if weight.tensor.dim() != 2:
        raise low.refusal("is not a product of activations and a constant matrix", "use a linear layer")
    matrix = low.store(weight)
    if bias is None:
        return low.emit("MatMul", [x.name, matrix])
    return low.emit("Add", [low.emit("MatMul", [x.name, matrix], part="product"), low.store(bias)])
