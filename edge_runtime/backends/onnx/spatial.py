"""Rules of the operators that slide over images, or resize them. Pure; knows no protobuf.

Legend: N batch (None in a shape), C channels, H and W height and width.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from edge_runtime.backends.onnx.operands import image, made, stored
from edge_runtime.backends.onnx.switched import convolved
from edge_runtime.backends.onnx.values import MAX_ELEMENTS, Attribute, Rule, Shape, Value
from edge_runtime.errors import BundleError

__all__ = ["CONV", "SPATIAL_RULES", "conv_work", "convolution_shape"]

MAX_SIDE = 64
"""Of a kernel, stride, dilation or factor of a resize."""

_SINGLE = struct.Struct("<f")


def _slide(size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int]) -> int:
    """Output size of a window along one side; each pad is smaller than the window, so no window is all padding."""
    reach = (kernel - 1) * dilation + 1
    if max(pads) >= reach or size + sum(pads) < reach:
        raise BundleError(f"a window of {reach} with pads {list(pads)} does not fit {size} pixels")
    return (size + sum(pads) - reach) // stride + 1


def _slide_both(a: Mapping[str, Any], kernel: Sequence[int], h: int, w: int) -> tuple[int, int]:
    top, left, bottom, right = a["pads"]
    dilations = a.get("dilations", (1, 1))
    return (
        _slide(h, kernel[0], a["strides"][0], dilations[0], (top, bottom)),
        _slide(w, kernel[1], a["strides"][1], dilations[1], (left, right)),
    )


def convolution_shape(a: Mapping[str, Any], given: Value, weight: Value) -> Shape:
    """Shape that a convolution of [N, C, H, W] gives with a weight of 4 dimensions; `BundleError` where none fits."""
    _, c, h, w = (int(d or 0) for d in given.shape)
    out, per_group, *kernel = (int(d or 0) for d in weight.shape)
    if per_group * a["group"] != c or out % a["group"]:
        raise BundleError(f"a weight {list(weight.shape)} with group {a['group']} does not fit {c} channels")
    if max(kernel) > MAX_SIDE or a["kernel_shape"] not in (None, tuple(kernel)):
        raise BundleError(f"kernel_shape {a['kernel_shape']} does not fit the weight {list(weight.shape)}")
    return (None, out, *_slide_both(a, kernel, h, w))


def _conv(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    image(x[0])
    given, weight = x[0], x[1]
    if weight is None or not (weight.stored or weight.decoded) or weight.dtype != "float32" or len(weight.shape) != 4:
        raise BundleError("the weight is not a float32 initializer of 4 dimensions")
    assert given is not None
    shape = convolution_shape(a, given, weight)
    if len(x) == 3:
        stored(x[2], shape[1:2], "bias")
    return Value("float32", shape, elastic=convolved(x, a["group"]))


def conv_work(_: Mapping[str, Any], x: Sequence[Value | None], value: Value) -> int:
    """Multiply-adds of a convolution for one image, from its one stored input of 4 dimensions and its output."""
    weight = next((v for v in x if v and (v.stored or v.decoded) and len(v.shape) == 4), None)
    return (weight.elements if weight else 0) * math.prod(int(d or 0) for d in value.shape[2:])


def _pool(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    c, h, w = image(x[0])
    if a["kernel_shape"] is None:
        raise BundleError("kernel_shape is missing")
    return made((c, *_slide_both(a, a["kernel_shape"], h, w)))


def _pool_work(a: Mapping[str, Any], _: Sequence[Value | None], value: Value) -> int:
    return int(math.prod(a["kernel_shape"])) * value.elements


def _global_pool(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    return made((image(x[0])[0], 1, 1))


def _local_response(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    if a["size"] is None or a["size"] % 2 == 0:
        raise BundleError(f"the size is {a['size']}, not an odd number of channels")
    c, h, w = image(x[0])
    if (c + int(a["size"]) - 1) * h * w > MAX_ELEMENTS:  # what onnxruntime keeps beside the result
        raise BundleError(f"{a['size']} channels around {c} of {h} x {w} are more than {MAX_ELEMENTS} elements")
    return made((c, h, w))


def _local_response_work(a: Mapping[str, Any], _: Sequence[Value | None], value: Value) -> int:
    return int(a["size"]) * value.elements


def _resize(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    c, h, w = image(x[0])
    kind = (a["mode"], a["coordinate_transformation_mode"], a["nearest_mode"])
    if kind not in _RESIZES:
        raise BundleError(f"it resizes as {kind}, not as one of {', '.join(map(str, _RESIZES))}")
    if len(x) != 3 or x[1] is not None:
        raise BundleError("it does not have an image, no region and scales")
    stored(x[2], (4,), "scales")
    batch, channels, *scales = (x[2].constants if x[2] else None) or (0.0,)
    if (batch, channels) != (1.0, 1.0):
        raise BundleError("it resizes the batch or the channels")
    return made((c, *(_scaled(size, scale) for size, scale in zip((h, w), scales, strict=True))))


def _scaled(size: int, scale: float) -> int:
    """Pixels after a resize; refused where rounding in single or double precision gives different numbers."""
    if not 1 / MAX_SIDE <= scale <= MAX_SIDE:
        raise BundleError(f"the scale {scale} is not between 1/{MAX_SIDE} and {MAX_SIDE}")
    (single,) = _SINGLE.unpack(_SINGLE.pack(size * scale))
    if int(single) != int(size * scale) or int(single) < 1:
        raise BundleError(f"{size} pixels by the scale {scale} are not a clear number of pixels")
    return int(single)


_RESIZES = (
    ("nearest", "asymmetric", "floor"),
    ("linear", "half_pixel", None),
    ("linear", "align_corners", None),
)
_PAIR = {"strides": Attribute(1, MAX_SIDE, (1, 1), 2), "pads": Attribute(0, MAX_SIDE, (0, 0, 0, 0), 4)}
_KERNEL = {"kernel_shape": Attribute(1, MAX_SIDE, None, 2), **_PAIR}
_DILATIONS = {"dilations": Attribute(1, MAX_SIDE, (1, 1), 2)}
CONV = {**_KERNEL, **_DILATIONS, "group": Attribute(1, 65_536, 1)}
_MAX_POOL = {**_KERNEL, **_DILATIONS, "ceil_mode": Attribute(0, 0, 0), "storage_order": Attribute(0, 0, 0)}
_MEAN_POOL = {**_KERNEL, "ceil_mode": Attribute(0, 0, 0), "count_include_pad": Attribute(0, 1, 0)}
_RESPONSE = {
    "size": Attribute(1, MAX_SIDE),
    "alpha": Attribute(0, 1e6, 1e-4, real=True),
    "beta": Attribute(0, 16, 0.75, real=True),
    "bias": Attribute(0, 1e6, 1.0, real=True),
}
_RESIZE = {
    "mode": Attribute(0, 0, words=("nearest", "linear")),
    "coordinate_transformation_mode": Attribute(0, 0, words=("asymmetric", "half_pixel", "align_corners")),
    "nearest_mode": Attribute(0, 0, words=("floor",)),
}

SPATIAL_RULES: Mapping[str, Rule] = {
    "AveragePool": Rule((1, 1), _pool, _MEAN_POOL, work=_pool_work),
    "Conv": Rule((2, 3), _conv, CONV, elastic=True, work=conv_work),
    "GlobalAveragePool": Rule((1, 1), _global_pool),
    "LRN": Rule((1, 1), _local_response, _RESPONSE, work=_local_response_work),
    "MaxPool": Rule((1, 1), _pool, _MAX_POOL, work=_pool_work),
    "Resize": Rule((3, 3), _resize, _RESIZE),
}
