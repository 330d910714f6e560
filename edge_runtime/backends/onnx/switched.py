"""Layers whose channels gates switch: the one form that is allowed, and what may be between its two convolutions.

``Gather(gates, entry of each channel) -> Cast to bool -> Compress(weight)``: axis 0 of the weight and bias of the
convolution that makes the channels, axis 1 of the weight of the convolution that takes them. Pure; knows no protobuf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_runtime.backends.onnx.values import Attribute, Elastic, Rule, Value
from edge_runtime.errors import BundleError

__all__ = ["SWITCHED_RULES", "convolved", "gathered_channels"]

BOOL = 9
"""In ONNX's numbers of data types."""


def gathered_channels(gates: Value, index: Value) -> Value:
    """The gates of the channels of a layer: one entry of the gate vector for each."""
    channels = index.integers()
    if channels is None or len(channels) < 2:
        raise BundleError("the index is neither one constant nor a stored vector of the entries of channels")
    if wrong := [entry for entry in channels if not 0 <= entry < gates.elements]:
        raise BundleError(f"the gate vector has no entry {wrong[0]}")
    return Value("int64", index.shape, channels=channels)


def convolved(x: Sequence[Value | None], group: int) -> Elastic | None:
    """Which channels of a convolution's result gates switch: those of its weight, which has to fit its input."""
    given, weight, bias = (value.elastic if value else None for value in (*x, None)[:3])
    if not (given or weight or bias):
        return None
    if group != 1:
        raise BundleError(
            "a grouped convolution cannot have channels that gates switch: its group is a fixed number",
            hint="use group 1 in layers of modules; depthwise convolutions are not supported there",
        )
    if given:
        if bias or weight != Elastic(1, given.channels):
            raise BundleError("the weight is not compressed on axis 1 as the channels that it takes are")
        return None
    if weight is None or weight.axis != 0 or (len(x) > 2 and x[2] is not None and bias != weight):
        raise BundleError("the weight and the bias are not compressed on axis 0 by the same gates")
    return Elastic(1, weight.channels)


def _cast(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    gates = x[0]
    if gates is None or gates.dtype != "int64" or gates.channels is None or a["to"] != BOOL:
        raise BundleError("only the gates of channels are cast, and to bool")
    return Value("bool", gates.shape, channels=gates.channels)


def _compress(a: Mapping[str, Any], x: Sequence[Value | None]) -> Value:
    weight, condition, axis = x[0], x[1], a["axis"]
    if condition is None or condition.dtype != "bool" or condition.channels is None:
        raise BundleError("the condition is not the gates of channels as bool")
    if weight is None or not weight.stored or weight.dtype != "float32":
        raise BundleError("only a float32 initializer is compressed")
    if axis is None or axis >= len(weight.shape) or weight.shape[axis] != len(condition.channels):
        raise BundleError(f"axis {axis} of {list(weight.shape)} does not have {len(condition.channels)} channels")
    return Value("float32", weight.shape, stored=True, elastic=Elastic(axis, condition.channels))


SWITCHED_RULES: Mapping[str, Rule] = {
    "Cast": Rule((1, 1), _cast, {"to": Attribute(BOOL, BOOL)}),
    "Compress": Rule((2, 2), _compress, {"axis": Attribute(0, 1)}),
}
