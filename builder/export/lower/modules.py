"""What the modules of torch.nn compute, in the words of torch's functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from builder.export.lower.values import Weight
from builder.int8.modules import DecodedConv, DecodedLinear, Dequantize, Quantize, QuantizedConv

__all__ = ["call_of"]


@dataclass(frozen=True, slots=True)
class _Call:
    """A function, and which attributes of the module are its arguments of the same names."""

    function: str
    weights: str = ""
    settings: str = ""


_POOL = "kernel_size stride padding ceil_mode"
_CONV = "stride padding dilation groups padding_mode"
_BATCH_NORM = _Call("batch_norm", "running_mean running_var weight bias", "eps")
_RESIZE = _Call("interpolate", "", "size scale_factor mode align_corners")
_IDENTITY = _Call("identity")

_CALLS: dict[type[nn.Module], _Call] = {
    DecodedConv: _Call("decoded_conv", "weight weight_scale bias", "stride padding dilation groups"),
    DecodedLinear: _Call("decoded_linear", "weight weight_scale bias"),
    Dequantize: _Call("dequantize", "", "coding"),
    Quantize: _Call("quantize", "", "coding"),
    QuantizedConv: _Call("quantized_conv", "weight weight_scale bias", "taken given stride pads dilation groups"),
    nn.AdaptiveAvgPool2d: _Call("adaptive_avg_pool2d", "", "output_size"),
    nn.AdaptiveMaxPool2d: _Call("adaptive_max_pool2d", "", "output_size return_indices"),
    nn.AvgPool2d: _Call("avg_pool2d", "", f"{_POOL} count_include_pad divisor_override"),
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.CELU: _Call("celu", "", "alpha"),
    nn.ChannelShuffle: _Call("channel_shuffle", "", "groups"),
    nn.Conv2d: _Call("conv2d", "weight bias", _CONV),
    nn.Dropout: _IDENTITY,
    nn.Dropout2d: _IDENTITY,
    nn.ELU: _Call("elu", "", "alpha"),
    nn.Flatten: _Call("flatten"),
    nn.GELU: _Call("gelu", "", "approximate"),
    nn.GroupNorm: _Call("group_norm", "weight bias", "num_groups eps"),
    nn.Hardsigmoid: _Call("hardsigmoid"),
    nn.Hardswish: _Call("hardswish"),
    nn.Hardtanh: _Call("hardtanh", "", "min_val max_val"),
    nn.Identity: _IDENTITY,
    nn.InstanceNorm2d: _Call("instance_norm", "running_mean running_var weight bias", "eps"),
    nn.LayerNorm: _Call("layer_norm", "weight bias", "normalized_shape eps"),
    nn.LeakyReLU: _Call("leaky_relu", "", "negative_slope"),
    nn.Linear: _Call("linear", "weight bias"),
    nn.LocalResponseNorm: _Call("local_response_norm", "", "size alpha beta k"),
    nn.MaxPool2d: _Call("max_pool2d", "", f"{_POOL} dilation return_indices"),
    nn.Mish: _Call("mish"),
    nn.PReLU: _Call("prelu", "weight"),
    nn.PixelShuffle: _Call("pixel_shuffle", "", "upscale_factor"),
    nn.ReLU6: _Call("relu6"),
    nn.ReLU: _Call("relu"),
    nn.SELU: _Call("selu"),
    nn.SiLU: _Call("silu"),
    nn.Sigmoid: _Call("sigmoid"),
    nn.Softmax: _Call("softmax", "", "dim"),
    nn.Softplus: _Call("softplus", "", "beta threshold"),
    nn.Tanh: _Call("tanh"),
    nn.Unflatten: _Call("unflatten"),
    nn.Upsample: _RESIZE,
    nn.UpsamplingBilinear2d: _RESIZE,
    nn.UpsamplingNearest2d: _RESIZE,
    nn.ZeroPad2d: _Call("zero_pad", "", "padding"),
}


def call_of(module: nn.Module, target: str) -> tuple[str, dict[str, Any]] | None:
    """The function that `module`, named `target`, computes, and its arguments beside the first; None if unknown."""
    call = _CALLS.get(type(module))
    if call is None:
        return None
    arguments: dict[str, Any] = {name: getattr(module, name) for name in call.settings.split()}
    for name in call.weights.split():
        tensor = getattr(module, name)
        arguments[name] = None if tensor is None else Weight(f"{target}.{name}", tensor.detach())
    return call.function, arguments
