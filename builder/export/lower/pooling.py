"""Pooling. What torch rounds up (`ceil_mode`) becomes pixels of padding at the end, for the traced size is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from builder.export.lower.table import translates
from builder.export.lower.values import NO_PADS, Pads, Value, axis_of, pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from builder.export.lower.walk import Lowering

__all__ = ["adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d", "mean"]

_IMAGE_AXES = {2, 3}


@translates("max_pool2d")
def max_pool2d(
    low: Lowering,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """``torch.nn.functional.max_pool2d``."""
    if return_indices:
        raise low.refusal("returns indices", "pool without them")
    kernel, dilations = pair(kernel_size), pair(dilation)
    strides = pair(stride) if stride else kernel
    attributes = {
        "kernel_shape": list(kernel),
        "strides": list(strides),
        "dilations": list(dilations),
        "pads": list(_pads(low, x, kernel, strides, dilations, pair(padding))),
    }
    return low.emit("MaxPool", [x.name], attributes)


@translates("avg_pool2d", takes_pads=True)
def avg_pool2d(
    low: Lowering,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> str:
    """``torch.nn.functional.avg_pool2d``; zeros in front of it count as pixels."""
    if divisor_override is not None:
        raise low.refusal("has a divisor of its own", "multiply its result instead")
    kernel, own = pair(kernel_size), pair(padding)
    strides = pair(stride) if stride else kernel
    pads = _pads(low, x, kernel, strides, (1, 1), own)
    rounded_up = pads[2:] != own
    included = count_include_pad and own != (0, 0)
    if rounded_up and included:
        raise low.refusal("rounds up beyond padding that counts", "use count_include_pad=False")
    ignored = rounded_up or (own != (0, 0) and not count_include_pad)
    if ignored or any(a + b >= size for a, b, size in zip(x.pads, pads, kernel * 2, strict=True)):
        x = low.padded(x)
    zeros = x.pads != NO_PADS
    attributes = {
        "kernel_shape": list(kernel),
        "strides": list(strides),
        "pads": [given + more for given, more in zip(x.pads, pads, strict=True)],
        "count_include_pad": int(included or zeros),
    }
    return low.emit("AveragePool", [x.name], attributes)


@translates("adaptive_avg_pool2d")
def adaptive_avg_pool2d(low: Lowering, x: Value, output_size: Any) -> str:
    """``torch.nn.functional.adaptive_avg_pool2d`` to one pixel, or to a size that divides."""
    if (kernel := _divided(low, x, output_size)) == x.shape[2:]:
        return low.emit("GlobalAveragePool", [x.name])
    return low.emit("AveragePool", [x.name], {"kernel_shape": list(kernel), "strides": list(kernel)})


@translates("adaptive_max_pool2d")
def adaptive_max_pool2d(low: Lowering, x: Value, output_size: Any, return_indices: bool = False) -> str:
    """``torch.nn.functional.adaptive_max_pool2d`` to one pixel, or to a size that divides."""
    if return_indices:
        raise low.refusal("returns indices", "pool without them")
    if (kernel := _divided(low, x, output_size)) == x.shape[2:]:
        return low.emit("ReduceMax", [x.name], {"axes": sorted(_IMAGE_AXES), "keepdims": 1})
    return low.emit("MaxPool", [x.name], {"kernel_shape": list(kernel), "strides": list(kernel)})


@translates("aten.adaptive_max_pool2d")
def aten_adaptive_max_pool2d(low: Lowering, x: Value, output_size: Any) -> list[str | None]:
    """``aten.adaptive_max_pool2d``, whose indices nothing may read."""
    return [adaptive_max_pool2d(low, x, output_size, low.parts()[1] is not None), None]


@translates("mean")
def mean(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> str:
    """``torch.mean`` over dimensions other than the batch; over height and width it is global pooling."""
    axes = reduced_axes(low, x, dim)
    if set(axes) != _IMAGE_AXES or len(x.shape) != 4:
        return low.emit("ReduceMean", [x.name], {"axes": axes, "keepdims": int(keepdim)})
    out = low.emit("GlobalAveragePool", [x.name])
    return out if keepdim else low.emit("Flatten", [out], {"axis": 1}, part="flat")


def reduced_axes(low: Lowering, x: Value, dim: int | Sequence[int] | None) -> list[int]:
    """The axes that a reduction over `dim` takes away, counted from the front, without the batch."""
    dims = range(len(x.shape)) if dim is None else (dim,) if isinstance(dim, int) else dim
    axes = sorted(axis_of(each, len(x.shape)) for each in dims)
    if not axes or axes[0] == 0:
        raise low.refusal("reduces the batch", "name the dimensions, without the first one")
    return axes


def _divided(low: Lowering, x: Value, output_size: Any) -> tuple[int, ...]:
    """The sides of the windows that `output_size` of them cover the image with, side by side."""
    wanted = [size if want is None else want for want, size in zip(_sides(output_size), x.shape[2:], strict=True)]
    if any(size % want for size, want in zip(x.shape[2:], wanted, strict=True)):
        raise low.refusal(f"pools {x.shape[2:]} to {wanted}, which does not divide", "pool to 1, or resize the input")
    return tuple(size // want for size, want in zip(x.shape[2:], wanted, strict=True))


def _sides(output_size: Any) -> Sequence[int | None]:
    return output_size if isinstance(output_size, list | tuple) and len(output_size) == 2 else pair(output_size)


def _pads(
    low: Lowering,
    x: Value,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    padding: tuple[int, int],
) -> Pads:
    """The padding on all sides, with what the last windows need beyond the bottom and right."""
    ends = []
    for axis in range(2):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        last = (low.shape[2 + axis] - 1) * strides[axis] + reach
        ends.append(max(padding[axis], last - x.shape[2 + axis] - padding[axis]))
    return padding[0], padding[1], ends[0], ends[1]
