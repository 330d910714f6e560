"""Which operators a gated graph may hold, in which ranges, and what shape each gives. Pure; knows no protobuf.

Our own inference, stricter than ONNX's: onnxruntime's kernels must never meet a shape, kernel or stride that was not
worked out here first. Legend: N batch (None in a shape), C channels, H and W height and width, K features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edge_runtime.backends.onnx.switched import SWITCHED_RULES, convolved, gathered_channels
from edge_runtime.backends.onnx.values import MAX_ELEMENTS, Attribute, Rule, Shape, Value
from edge_runtime.errors import BundleError

__all__ = ["MAX_ELEMENTS", "RULES", "Attribute", "Rule", "Value"]

MAX_SIDE = 64
"""Of a kernel, stride or dilation."""


def _fail(text: str) -> BundleError:
    return BundleError(text)


def _image(x: Value | None) -> tuple[int, int, int]:
    """C, H, W of an activation [N, C, H, W]."""
    if x is None or x.dtype != "float32" or len(x.shape) != 4 or x.shape[0] is not None:
        raise _fail("the input is not float32 [N, C, H, W]")
    _, c, h, w = x.shape
    return int(c or 0), int(h or 0), int(w or 0)


def _stored(x: Value | None, shape: Shape, what: str) -> None:
    if x is None or not x.stored or x.dtype != "float32" or x.shape != shape:
        raise _fail(f"the {what} is not a float32 initializer of shape {list(shape)}")


def _slide(size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int]) -> int:
    """Output size of a window along one side; each pad is smaller than the window, so no window is all padding."""
    reach = (kernel - 1) * dilation + 1
    if max(pads) >= reach or size + sum(pads) < reach:
        raise _fail(f"a window of {reach} with pads {list(pads)} does not fit {size} pixels")
    return (size + sum(pads) - reach) // stride + 1


def _slide_both(a: Mapping[str, Any], kernel: Sequence[int], h: int, w: int) -> tuple[int, int]:
    top, left, bottom, right = a["pads"]
    dilations = a.get("dilations", (1, 1))
    return (
        _slide(h, kernel[0], a["strides"][0], dilations[0], (top, bottom)),
        _slide(w, kernel[1], a["strides"][1], dilations[1], (left, right)),
    )


def _conv(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    c, h, w = _image(x[0])
    weight, group = x[1], a["group"]
    if weight is None or not weight.stored or weight.dtype != "float32" or len(weight.shape) != 4:
        raise _fail("the weight is not a float32 initializer of 4 dimensions")
    out, per_group, *kernel = (int(d or 0) for d in weight.shape)
    if per_group * group != c or out % group:
        raise _fail(f"a weight {list(weight.shape)} with group {group} does not fit {c} channels")
    if max(kernel) > MAX_SIDE or a["kernel_shape"] not in (None, tuple(kernel)):
        raise _fail(f"kernel_shape {a['kernel_shape']} does not fit the weight {list(weight.shape)}")
    if len(x) == 3:
        _stored(x[2], (out,), "bias")
    return Value("float32", (None, out, *_slide_both(a, kernel, h, w)), elastic=convolved(x, group))


def _batch_norm(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    c, h, w = _image(x[0])
    for parameter in x[1:]:
        _stored(parameter, (c,), "parameter")
    return Value("float32", (None, c, h, w))


def _same(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    given = _activation(x[0])
    return Value("float32", given.shape, elastic=given.elastic)


def _activation(x: Value | None) -> Value:
    if x is None or x.dtype != "float32" or len(x.shape) < 2 or x.shape[0] is not None:
        raise _fail("the input is not float32 with the batch first")
    return x


def _clip(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    bounds = [-math.inf, math.inf]
    for index, bound in enumerate(x[1:]):
        if bound is not None:
            _stored(bound, (), "bound")
            bounds[index] = bound.constants[0] if bound.constants else math.nan
    if not bounds[0] <= bounds[1]:
        raise _fail(f"the bounds {bounds} are not in order")
    return _same(a, x)


def _broadcast(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    left, right = x
    if left is None or right is None or left.dtype != "float32" or right.dtype != "float32":
        raise _fail("the inputs are not float32")
    rank = max(len(left.shape), len(right.shape))
    pairs = zip(*((1,) * (rank - len(v.shape)) + v.shape for v in (left, right)), strict=True)
    shape: list[int | None] = []
    for one, other in pairs:
        if one != other and 1 not in (one, other):
            raise _fail(f"the shapes {list(left.shape)} and {list(right.shape)} do not fit")
        shape.append(other if one == 1 else one)
    if None in shape[1:]:
        raise _fail("the shapes put the batch of one input beside another dimension")
    return _activation(Value("float32", tuple(shape)))


def _concat(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    parts = [_activation(part).shape for part in x]
    axis, rank = a["axis"], len(parts[0])
    if axis is None or axis >= rank:
        raise _fail(f"there is no axis {axis} to join at")
    rests = {part[:axis] + part[axis + 1 :] for part in parts}
    if len(rests) != 1 or any(len(part) != rank for part in parts):
        raise _fail("the inputs differ outside the axis")
    joined = sum(int(part[axis] or 0) for part in parts)
    return Value("float32", (*parts[0][:axis], joined, *parts[0][axis + 1 :]))


def _pool(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    c, h, w = _image(x[0])
    if a["kernel_shape"] is None:
        raise _fail("kernel_shape is missing")
    return Value("float32", (None, c, *_slide_both(a, a["kernel_shape"], h, w)))


def _global_pool(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    return Value("float32", (None, _image(x[0])[0], 1, 1))


def _reduce_mean(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    shape = _activation(x[0]).shape
    axes = _axes(a["axes"] or (), len(shape))
    kept = [(1 if i in axes else d) for i, d in enumerate(shape) if a["keepdims"] or i not in axes]
    return _activation(Value("float32", tuple(kept)))


def _axes(axes: Sequence[float], rank: int) -> set[int]:
    found = {int(axis) + (rank if axis < 0 else 0) for axis in axes}
    if not axes or len(found) != len(axes) or not all(1 <= axis < rank for axis in found):
        raise _fail(f"the axes {list(axes)} do not fit {rank} dimensions without the batch")
    return found


def _flatten(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    return Value("float32", (None, _activation(x[0]).elements))


def _gemm(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    features, weight = _activation(x[0]), x[1]
    if len(features.shape) != 2 or weight is None or len(weight.shape) != 2:
        raise _fail("the inputs are not [N, K] and a matrix")
    out, k = weight.shape if a["transB"] else weight.shape[::-1]
    _stored(weight, weight.shape, "weight")
    if k != features.shape[1]:
        raise _fail(f"a weight {list(weight.shape)} does not fit {features.shape[1]} features")
    if len(x) == 3:
        _stored(x[2], (out,), "bias")
    return Value("float32", (None, out))


def _gather(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    gates, index = x
    if gates is None or gates.dtype != "int64" or gates.stored or len(gates.shape) != 1:
        raise _fail("only the gate vector is gathered from")
    if gates.gate is not None or gates.channels is not None:
        raise _fail("only the gate vector is gathered from, and not what was gathered")
    if index is None or index.dtype != "int64" or not index.stored:
        raise _fail("the index is not constant")
    if index.shape not in ((), (1,)) or not index.constants:
        return gathered_channels(gates, index)
    entry = int(index.constants[0])
    if not 0 <= entry < gates.elements:
        raise _fail(f"the gate vector has no entry {entry}")
    return Value("int64", index.shape, gate=entry)


def _squeeze(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    value, axes = x
    if value is None or axes is None or axes.dtype != "int64" or not axes.constants or len(axes.shape) != 1:
        raise _fail("the axes are not constants")
    if value.gate is not None and value.shape == (1,) and axes.constants in ((0,), (-1,)):
        return Value(value.dtype, (), gate=value.gate)
    shape = _activation(value).shape
    dropped = _axes(axes.constants, len(shape))
    if any(shape[axis] != 1 for axis in dropped):
        raise _fail(f"the axes {sorted(dropped)} of {list(shape)} are not of size 1")
    return _activation(Value("float32", tuple(d for i, d in enumerate(shape) if i not in dropped)))


def _compare(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    gate, bound = x
    if gate is None or gate.gate is None or gate.dtype != "int64" or gate.shape:
        raise _fail("the first input is not one gate")
    if bound is None or bound.dtype != "int64" or not bound.constants or bound.shape:
        raise _fail("the second input is not one constant")
    return Value("bool", (), gate=gate.gate)


_PAIR = {"strides": Attribute(1, MAX_SIDE, (1, 1), 2), "pads": Attribute(0, MAX_SIDE, (0, 0, 0, 0), 4)}
_KERNEL = {"kernel_shape": Attribute(1, MAX_SIDE, None, 2), **_PAIR}
_DILATIONS = {"dilations": Attribute(1, MAX_SIDE, (1, 1), 2)}
_MAX_POOL = {**_KERNEL, **_DILATIONS, "ceil_mode": Attribute(0, 0, 0), "storage_order": Attribute(0, 0, 0)}
_MEAN_POOL = {**_KERNEL, "ceil_mode": Attribute(0, 0, 0), "count_include_pad": Attribute(0, 1, 0)}
_UNIT = Attribute(0, 1, 0.0, real=True)
_FACTOR = Attribute(-1e6, 1e6, 1.0, real=True)
_NORM = {"epsilon": _UNIT, "momentum": _UNIT, "training_mode": Attribute(0, 0, 0)}
_GEMM = {"alpha": _FACTOR, "beta": _FACTOR, "transA": Attribute(0, 0, 0), "transB": Attribute(0, 1, 0)}
_MEAN = {"axes": Attribute(-3, 3, None, 0), "keepdims": Attribute(0, 1, 1)}

RULES: Mapping[str, Rule] = {
    "Add": Rule((2, 2), _broadcast),
    "AveragePool": Rule((1, 1), _pool, _MEAN_POOL),
    "BatchNormalization": Rule((5, 5), _batch_norm, _NORM),
    "Clip": Rule((1, 3), _clip, elastic=True),
    "Concat": Rule((1, 64), _concat, {"axis": Attribute(1, 3)}),
    "Conv": Rule((2, 3), _conv, {**_KERNEL, **_DILATIONS, "group": Attribute(1, 65_536, 1)}, elastic=True),
    "Equal": Rule((2, 2), _compare),
    "Flatten": Rule((1, 1), _flatten, {"axis": Attribute(1, 1, 1)}),
    "Gather": Rule((2, 2), _gather, {"axis": Attribute(0, 0, 0)}),
    "Gemm": Rule((2, 3), _gemm, _GEMM),
    "GlobalAveragePool": Rule((1, 1), _global_pool),
    "HardSigmoid": Rule((1, 1), _same, {"alpha": _FACTOR, "beta": _FACTOR}, elastic=True),
    "HardSwish": Rule((1, 1), _same, elastic=True),
    "Identity": Rule((1, 1), _same, elastic=True),
    "Less": Rule((2, 2), _compare),
    "MaxPool": Rule((1, 1), _pool, _MAX_POOL),
    "Mul": Rule((2, 2), _broadcast),
    "ReduceMean": Rule((1, 1), _reduce_mean, _MEAN),
    "Relu": Rule((1, 1), _same, elastic=True),
    "Sigmoid": Rule((1, 1), _same, elastic=True),
    "Squeeze": Rule((2, 2), _squeeze),
    **SWITCHED_RULES,
}
