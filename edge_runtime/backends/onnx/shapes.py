"""Which operators a gated graph may hold, in which ranges, and what shape each gives. Pure; knows no protobuf.

Our own inference, stricter than ONNX's: onnxruntime's kernels must never meet a shape, kernel or stride that was not
worked out here first. Legend: N batch (None in a shape), C channels, K features. The rules of images are in
`spatial.py`, those of reshapes in `movement.py`, those of channels that gates switch in `switched.py`, those of
8 bits in `quantised.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edge_runtime.backends.onnx.movement import MOVEMENT_RULES
from edge_runtime.backends.onnx.operands import activation, axes_of, made, stored, stored_integers
from edge_runtime.backends.onnx.quantised import QUANTISED_RULES
from edge_runtime.backends.onnx.spatial import SPATIAL_RULES
from edge_runtime.backends.onnx.switched import SWITCHED_RULES, gathered_channels
from edge_runtime.backends.onnx.values import MAX_COUNT, Attribute, Rule, Value
from edge_runtime.errors import BundleError
from edge_runtime.gates import MAX_GROUP_SIZE

__all__ = ["RULES"]


def _same(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    given = activation(x[0])
    return Value("float32", given.shape, elastic=given.elastic)


def _clip(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    bounds = [-math.inf, math.inf]
    for index, bound in enumerate(x[1:]):
        if bound is not None:
            stored(bound, (), "bound")
            bounds[index] = bound.constants[0] if bound.constants else math.nan
    if not bounds[0] <= bounds[1]:
        raise BundleError(f"the bounds {bounds} are not in order")
    return _same(a, x)


def _slopes(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    shape = activation(x[0]).shape
    columns = (shape[1], *(1 for _ in shape[2:]))
    stored(x[1], columns, "slope")
    return made(shape[1:])


def _broadcast(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    left, right = x
    if left is None or right is None or left.dtype != "float32" or right.dtype != "float32":
        raise BundleError("the inputs are not float32")
    if left.decoded or right.decoded:
        raise BundleError("a weight that is stored in 8 bits is an input")
    rank = max(len(left.shape), len(right.shape))
    pairs = zip(*((1,) * (rank - len(v.shape)) + v.shape for v in (left, right)), strict=True)
    shape: list[int | None] = []
    for one, other in pairs:
        if one != other and 1 not in (one, other):
            raise BundleError(f"the shapes {list(left.shape)} and {list(right.shape)} do not fit")
        shape.append(other if one == 1 else one)
    if None in shape[1:]:
        raise BundleError("the shapes put the batch of one input beside another dimension")
    return activation(Value("float32", tuple(shape)))


def _batch_norm(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    shape = activation(x[0]).shape
    for parameter in x[1:]:
        stored(parameter, (shape[1],), "parameter")
    return made(shape[1:])


def _instance_norm(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    shape = activation(x[0]).shape
    if len(shape) < 3:
        raise BundleError(f"{list(shape)} has no pixels to normalise over")
    for parameter in x[1:]:
        stored(parameter, (shape[1],), "parameter")
    return made(shape[1:])


def _layer_norm(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    shape = activation(x[0]).shape
    if a["axis"] is None or a["axis"] >= len(shape):
        raise BundleError(f"there is no axis {a['axis']} from which on to normalise")
    for parameter in x[1:]:
        stored(parameter, shape[a["axis"] :], "parameter")
    return made(shape[1:])


def _softmax(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    shape = activation(x[0]).shape
    if a["axis"] is None or a["axis"] >= len(shape):
        raise BundleError(f"there is no axis {a['axis']} along which to work")
    return made(shape[1:])


def _reduced(x: Value | None, axes: Sequence[float], keepdims: int) -> Value:
    shape = activation(x).shape
    gone = axes_of(axes, len(shape))
    return made([1 if i in gone else d for i, d in enumerate(shape) if i and (keepdims or i not in gone)])


def _reduce(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    return _reduced(x[0], a["axes"] or (), a["keepdims"])


def _reduce_sum(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    return _reduced(x[0], stored_integers(x[1], "axes"), a["keepdims"])


def _gemm(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    features = activation(x[0])
    if len(features.shape) != 2:
        raise BundleError("the inputs are not [N, K] and a matrix")
    weight = _matrix(x[1])
    out, k = weight.shape if a["transB"] else weight.shape[::-1]
    if k != features.shape[1]:
        raise BundleError(f"a weight {list(weight.shape)} does not fit {features.shape[1]} features")
    if len(x) == 3:
        stored(x[2], (out,), "bias")
    return made((out,))


def _matmul(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    shape = activation(x[0]).shape
    k, out = _matrix(x[1]).shape
    if k != shape[-1]:
        raise BundleError(f"a weight [{k}, {out}] does not fit {shape[-1]} features")
    return made((*shape[1:-1], out))


def _matrix(x: Value | None) -> Value:
    if x is None or len(x.shape) != 2:
        raise BundleError("the second input is not a matrix")
    if not x.decoded:
        stored(x, x.shape, "weight")
    return x


def _product_work(_: Mapping[str, Any], x: Sequence[Value | None], value: Value) -> int:
    return value.elements * (int(x[0].shape[-1] or 0) if x[0] else 0)


def _gather(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    gates, index = x
    if gates is None or gates.dtype != "int64" or gates.stored or len(gates.shape) != 1:
        raise BundleError("only the gate vector is gathered from")
    if gates.gate is not None or gates.channels is not None:
        raise BundleError("only the gate vector is gathered from, and not what was gathered")
    if index is None or index.dtype != "int64" or not index.stored:
        raise BundleError("the index is not constant")
    if index.shape not in ((), (1,)) or not index.constants:
        return gathered_channels(gates, index)
    entry = int(index.constants[0])
    if not 0 <= entry < gates.elements:
        raise BundleError(f"the gate vector has no entry {entry}")
    return Value("int64", index.shape, gate=entry)


def _compare(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    gate, bound = x
    if gate is None or gate.gate is None or gate.dtype != "int64" or gate.shape:
        raise BundleError("the first input is not one gate")
    if bound is None or bound.dtype != "int64" or not bound.constants or bound.shape:
        raise BundleError("the second input is not one constant")
    if not 0 <= bound.constants[0] <= MAX_GROUP_SIZE:
        raise BundleError(f"the gate is compared with {bound.constants[0]:g}, no gate is above {MAX_GROUP_SIZE - 1}")
    return Value("bool", (), gate=gate.gate)


_LAST = MAX_COUNT - 1
_AXIS = {"axis": Attribute(1, _LAST)}
_UNIT = Attribute(0, 1, 0.0, real=True)
_FACTOR = Attribute(-1e6, 1e6, 1.0, real=True)
_NORM = {"epsilon": _UNIT, "momentum": _UNIT, "training_mode": Attribute(0, 0, 0)}
_GEMM = {"alpha": _FACTOR, "beta": _FACTOR, "transA": Attribute(0, 0, 0), "transB": Attribute(0, 1, 0)}
_KEEPS = Attribute(0, 1, 1)
_REDUCE = {"axes": Attribute(-_LAST, _LAST, None, 0), "keepdims": _KEEPS}
_REDUCE_SUM = {"keepdims": _KEEPS, "noop_with_empty_axes": Attribute(0, 0, 0)}
_ALPHA = {"alpha": _FACTOR}

RULES: Mapping[str, Rule] = {
    "Add": Rule((2, 2), _broadcast),
    "BatchNormalization": Rule((5, 5), _batch_norm, _NORM),
    "Clip": Rule((1, 3), _clip, elastic=True),
    "Div": Rule((2, 2), _broadcast),
    "Elu": Rule((1, 1), _same, _ALPHA),
    "Equal": Rule((2, 2), _compare),
    "Erf": Rule((1, 1), _same),
    "Exp": Rule((1, 1), _same),
    "Gather": Rule((2, 2), _gather, {"axis": Attribute(0, 0, 0)}),
    "Gemm": Rule((2, 3), _gemm, _GEMM, work=_product_work),
    "HardSigmoid": Rule((1, 1), _same, {"alpha": _FACTOR, "beta": _FACTOR}, elastic=True),
    "HardSwish": Rule((1, 1), _same, elastic=True),
    "Identity": Rule((1, 1), _same, elastic=True),
    "InstanceNormalization": Rule((3, 3), _instance_norm, {"epsilon": _UNIT}),
    "LayerNormalization": Rule((2, 3), _layer_norm, {**_AXIS, "epsilon": _UNIT}),
    "LeakyRelu": Rule((1, 1), _same, _ALPHA),
    "Less": Rule((2, 2), _compare),
    "MatMul": Rule((2, 2), _matmul, work=_product_work),
    "Mul": Rule((2, 2), _broadcast),
    "PRelu": Rule((2, 2), _slopes),
    "ReduceMax": Rule((1, 1), _reduce, _REDUCE),
    "ReduceMean": Rule((1, 1), _reduce, _REDUCE),
    "ReduceSum": Rule((2, 2), _reduce_sum, _REDUCE_SUM),
    "Relu": Rule((1, 1), _same, elastic=True),
    "Sigmoid": Rule((1, 1), _same, elastic=True),
    "Softmax": Rule((1, 1), _softmax, _AXIS),
    "Softplus": Rule((1, 1), _same),
    "Sqrt": Rule((1, 1), _same),
    "Sub": Rule((2, 2), _broadcast),
    "Tanh": Rule((1, 1), _same),
    **MOVEMENT_RULES,
    **QUANTISED_RULES,
    **SPATIAL_RULES,
    **SWITCHED_RULES,
}
