"""Layers that compute in 8 bits (`builder.int8`): ONNX's operators of the same names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.export.lower.convolution import convolution
from builder.export.lower.table import translates
from builder.export.lower.values import Pads, Value, Weight, pair
from builder.int8.modules import Coding

if TYPE_CHECKING:
    from builder.export.lower.walk import Lowering

__all__ = ["decoded_conv", "decoded_linear", "dequantize", "quantize", "quantized_conv"]


@translates("quantize")
def quantize(low: Lowering, x: Value, coding: Coding) -> str:
    """float32 to codes."""
    return low.emit("QuantizeLinear", [x.name, *_coding(low, coding)])


@translates("dequantize")
def dequantize(low: Lowering, x: Value, coding: Coding) -> str:
    """Codes to float32."""
    return low.emit("DequantizeLinear", [x.name, *_coding(low, coding)])


@translates("quantized_conv")
def quantized_conv(
    low: Lowering,
    x: Value,
    weight: Weight,
    weight_scale: Weight,
    bias: Weight,
    taken: Coding,
    given: Coding,
    stride: tuple[int, int],
    pads: Pads,
    dilation: tuple[int, int],
    groups: int,
) -> str:
    """Codes to codes."""
    attributes = {
        "kernel_shape": list(pair(weight.tensor.shape[2:])),
        "strides": list(stride),
        "dilations": list(dilation),
        "group": groups,
        "pads": list(pads),
    }
    weights = [low.store_whole(weight), low.store(weight_scale), low.whole(0, "int8")]
    inputs = [x.name, *_coding(low, taken), *weights, *_coding(low, given), low.store_whole(bias)]
    return low.emit("QLinearConv", inputs, attributes)


@translates("decoded_conv", takes_pads=True)
def decoded_conv(
    low: Lowering,
    x: Value,
    weight: Weight,
    weight_scale: Weight,
    bias: Weight,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> str:
    """A convolution in float32 by the weights that codes stand for: onnxruntime decodes them once, when it loads."""
    shape = tuple(weight.tensor.shape)
    shift = low.store(bias)
    return convolution(low, x, (_decoded(low, weight, weight_scale), shape), shift, stride, padding, dilation, groups)


@translates("decoded_linear")
def decoded_linear(low: Lowering, x: Value, weight: Weight, weight_scale: Weight, bias: Weight) -> str:
    """A linear layer in float32, in the same way."""
    return low.emit("Gemm", [x.name, _decoded(low, weight, weight_scale), low.store(bias)], {"transB": 1})


def _decoded(low: Lowering, weight: Weight, scale: Weight) -> str:
    return low.emit("DequantizeLinear", [low.store_whole(weight), low.store(scale)], {"axis": 0}, part="weight")


def _coding(low: Lowering, coding: Coding) -> tuple[str, str]:
    return low.scalar(coding.scale), low.whole(coding.zero, "uint8")
