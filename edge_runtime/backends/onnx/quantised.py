"""Rules of what is in 8 bits: float32 to codes, convolutions of codes, codes to float32, and weights stored so. Pure.

Codes are uint8 with one scale and zero for the whole tensor; weights are int8 with a scale for each output channel and
no zero. Codes go from one of these operators to another one and nowhere else. Knows no protobuf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edge_runtime.backends.base import CODES_TOLERANCE
from edge_runtime.backends.onnx.operands import activation, stored
from edge_runtime.backends.onnx.spatial import CONV, conv_work, convolution_shape
from edge_runtime.backends.onnx.values import Attribute, Rule, Value
from edge_runtime.errors import BundleError

__all__ = ["QUANTISED_RULES", "computes_in_8_bits", "tolerance_of"]


def _quantize(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    shape = activation(x[0]).shape
    _check_coding(x[1], x[2])
    return Value("uint8", shape)


def _dequantize(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    if len(x) == 2:
        return _decoded(a, x[0], x[1])
    codes = _codes(x[0])
    _check_coding(x[1], x[2])
    return Value("float32", codes.shape)


def _qlinear_conv(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    codes, weight, zero, bias = _codes(x[0]), x[3], x[5], x[8]
    _check_coding(x[1], x[2])
    _check_coding(x[6], x[7])
    if weight is None or not weight.stored or weight.dtype != "int8" or len(weight.shape) != 4:
        raise BundleError("the weight is not an int8 initializer of 4 dimensions")
    out = (weight.shape[0],)
    stored(x[4], out, "scale of the weight")
    if zero is None or zero.dtype != "int8" or zero.shape != () or zero.constants != (0,):
        raise BundleError("the zero of the weight is not the int8 constant 0")
    if bias is None or not bias.stored or bias.dtype != "int32" or bias.shape != out:
        raise BundleError(f"the bias is not an int32 initializer of shape {list(out)}")
    return Value("uint8", convolution_shape(a, codes, weight))


def _decoded(a: Mapping[str, Any], weight: Value | None, scale: Value | None) -> Value:
    """A float32 weight that is stored in 8 bits; only Conv, Gemm and MatMul take it."""
    if weight is None or not weight.stored or weight.dtype != "int8" or a["axis"] != 0:
        raise BundleError("without a zero only an int8 initializer is decoded, along axis 0")
    stored(scale, weight.shape[:1], "scale of the weight")
    return Value("float32", weight.shape, decoded=True)


def _codes(x: Value | None) -> Value:
    if x is None or x.dtype != "uint8" or x.stored or len(x.shape) != 4:
        raise BundleError("the input is not codes [N, C, H, W] that QuantizeLinear or QLinearConv made")
    return x


def _check_coding(scale: Value | None, zero: Value | None) -> None:
    stored(scale, (), "scale")
    assert scale is not None
    if not scale.constants or not 0 < scale.constants[0] < math.inf:
        raise BundleError(f"the scale {scale.constants} is not a finite number above 0")
    if zero is None or not zero.stored or zero.dtype != "uint8" or zero.shape != ():
        raise BundleError("the zero is not one uint8 constant")


QUANTISED_RULES: Mapping[str, Rule] = {
    "DequantizeLinear": Rule((2, 3), _dequantize, {"axis": Attribute(0, 0, 1)}),
    "QLinearConv": Rule((9, 9), _qlinear_conv, CONV, work=conv_work),
    "QuantizeLinear": Rule((3, 3), _quantize),
}


def computes_in_8_bits(graph: Any) -> bool:
    """Whether a GraphProto without branches has a convolution of codes."""
    return any(node.op_type == "QLinearConv" for node in graph.node)


def tolerance_of(graph: Any, usual: float) -> float:
    """How far two forms of a graph without branches may be apart: as `usual`, or by what other codes make."""
    return max(usual, CODES_TOLERANCE) if computes_in_8_bits(graph) else usual
