"""Rules of the operators that move elements, or leave some out, without changing any. Pure; knows no protobuf.

None of them can touch the batch: it stays the first dimension, whole and of free size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edge_runtime.backends.onnx.operands import activation, axes_of, made, stored, stored_integers
from edge_runtime.backends.onnx.values import MAX_COUNT, Attribute, Rule, Value
from edge_runtime.errors import BundleError

__all__ = ["MOVEMENT_RULES"]

MAX_STEP = 64
MAX_PAD = 2**14


def _concat(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    parts = [activation(part).shape for part in x]
    axis, rank = a["axis"], len(parts[0])
    if axis is None or axis >= rank:
        raise BundleError(f"there is no axis {axis} to join at")
    rests = {part[:axis] + part[axis + 1 :] for part in parts}
    if len(rests) != 1 or any(len(part) != rank for part in parts):
        raise BundleError("the inputs differ outside the axis")
    joined = sum(int(part[axis] or 0) for part in parts)
    return made((*parts[0][1:axis], joined, *parts[0][axis + 1 :]))


def _flatten(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    return made((activation(x[0]).elements,))


def _reshape(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    given = activation(x[0])
    batch, *sizes = stored_integers(x[1], "sizes")
    if batch != 0 or not 1 <= len(sizes) < MAX_COUNT or min(sizes) < 1:
        raise BundleError(f"the sizes {[batch, *sizes]} are not 0, which copies the batch, and up to 5 of 1 or more")
    if math.prod(sizes) != given.elements:
        raise BundleError(f"{list(given.shape)} cannot take the sizes {[batch, *sizes]}")
    return made(sizes)


def _transpose(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    shape, order = activation(x[0]).shape, a["perm"]
    if order is None or sorted(order) != list(range(len(shape))) or order[0] != 0:
        raise BundleError(f"perm {order} is not an order of {len(shape)} dimensions with the batch first")
    return made([shape[axis] for axis in order[1:]])


def _slice(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    shape = list(activation(x[0]).shape)
    if len(x) != 5:
        raise BundleError("it does not have begins, ends, axes and steps")
    begins, ends, axes, steps = (stored_integers(each, "bounds of a slice") for each in x[1:])
    axes_of(axes, len(shape))
    if min(axes) < 0 or not len(begins) == len(ends) == len(axes) == len(steps):
        raise BundleError("the bounds of a slice are not as many as its axes, which count from the front")
    for begin, end, axis, step in zip(begins, ends, axes, steps, strict=True):
        if not 0 <= begin < end <= int(shape[axis] or 0) or not 1 <= step <= MAX_STEP:
            raise BundleError(f"a slice from {begin} to {end} by {step} does not fit axis {axis} of {shape}")
        shape[axis] = len(range(begin, end, step))
    return made(shape[1:])


def _pad(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    shape = activation(x[0]).shape
    pads = stored_integers(x[1], "pads")
    if len(pads) != 2 * len(shape) or not all(0 <= pad <= MAX_PAD for pad in pads):
        raise BundleError(f"the pads {list(pads)} do not fit {len(shape)} dimensions, or are not 0 to {MAX_PAD}")
    front, back = pads[: len(shape)], pads[len(shape) :]
    if front[0] or back[0]:
        raise BundleError("it pads the batch")
    if len(x) == 3:
        stored(x[2], (), "value")
    return made([int(size or 0) + a + b for size, a, b in zip(shape[1:], front[1:], back[1:], strict=True)])


def _expand(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    shape = activation(x[0]).shape
    batch, *sizes = stored_integers(x[1], "sizes")
    fits = len(sizes) == len(shape) - 1 and all(
        want >= 1 and size in (1, want) for size, want in zip(shape[1:], sizes, strict=True)
    )
    if batch != 1 or not fits:
        raise BundleError(f"{list(shape)} cannot be expanded to {[batch, *sizes]}")
    return made(sizes)


def _squeeze(_: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    value, axes = x
    if value is None or axes is None or axes.dtype != "int64" or not axes.constants or len(axes.shape) != 1:
        raise BundleError("the axes are not constants")
    if value.gate is not None and value.shape == (1,) and axes.constants in ((0,), (-1,)):
        return Value(value.dtype, (), gate=value.gate)
    shape = activation(value).shape
    dropped = axes_of(axes.constants, len(shape))
    if any(shape[axis] != 1 for axis in dropped):
        raise BundleError(f"the axes {sorted(dropped)} of {list(shape)} are not of size 1")
    return made([d for i, d in enumerate(shape) if i and i not in dropped])


MOVEMENT_RULES: Mapping[str, Rule] = {
    "Concat": Rule((1, 64), _concat, {"axis": Attribute(1, MAX_COUNT - 1)}),
    "Expand": Rule((2, 2), _expand),
    "Flatten": Rule((1, 1), _flatten, {"axis": Attribute(1, 1, 1)}),
    "Pad": Rule((2, 3), _pad),
    "Reshape": Rule((2, 2), _reshape, {"allowzero": Attribute(0, 0, 0)}),
    "Slice": Rule((5, 5), _slice),
    "Squeeze": Rule((2, 2), _squeeze),
    "Transpose": Rule((1, 1), _transpose, {"perm": Attribute(0, MAX_COUNT - 1, None, 0)}),
}
