"""What a rule of the graph check may ask of one input of an operator. Pure; knows no protobuf and no operator.

Legend: N batch (None in a shape), C channels, H and W height and width, K features.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_runtime.backends.onnx.values import Shape, Value
from edge_runtime.errors import BundleError

__all__ = ["activation", "axes_of", "image", "made", "stored", "stored_integers"]


def activation(x: Value | None) -> Value:
    """`x`, which has to be float32 [N, ...]."""
    if x is None or x.dtype != "float32" or len(x.shape) < 2 or x.shape[0] is not None:
        raise BundleError("the input is not float32 with the batch first")
    return x


def made(sizes: Sequence[int | None]) -> Value:
    """What an operator gives: an activation of these sizes without the batch."""
    return activation(Value("float32", (None, *sizes)))


def image(x: Value | None) -> tuple[int, int, int]:
    """C, H, W of an activation [N, C, H, W]."""
    if x is None or x.dtype != "float32" or len(x.shape) != 4 or x.shape[0] is not None:
        raise BundleError("the input is not float32 [N, C, H, W]")
    _, c, h, w = x.shape
    return int(c or 0), int(h or 0), int(w or 0)


def stored(x: Value | None, shape: Shape, what: str) -> None:
    """Refuse `x` unless it is a float32 initializer of `shape`."""
    if x is None or not x.stored or x.dtype != "float32" or x.shape != shape:
        raise BundleError(f"the {what} is not a float32 initializer of shape {list(shape)}")


def stored_integers(x: Value | None, what: str) -> tuple[int, ...]:
    """The values of `x`, which has to be a short int64 vector among the initializers."""
    if x is None or not x.stored or x.dtype != "int64" or len(x.shape) != 1 or not x.constants:
        raise BundleError(f"the {what} are not constants: a short int64 vector among the initializers")
    return tuple(int(value) for value in x.constants)


def axes_of(axes: Sequence[float], rank: int) -> set[int]:
    """Axes of a tensor of `rank` dimensions counted from the front; none twice, and never the batch."""
    found = {int(axis) + (rank if axis < 0 else 0) for axis in axes}
    if not axes or len(found) != len(axes) or not all(1 <= axis < rank for axis in found):
        raise BundleError(f"the axes {list(axes)} do not fit {rank} dimensions without the batch")
    return found
