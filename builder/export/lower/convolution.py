"""Convolutions, each with a batch normalisation behind it, and the padding in front of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from builder.export.lower.table import translates
from builder.export.lower.values import NO_PADS, Pads, Shape, Value, Weight, pair

if TYPE_CHECKING:
    from builder.export.lower.walk import Lowering

__all__ = ["conv2d", "convolution", "pad", "zero_pad"]

_NORMS = ("batch_norm", "aten.batch_norm")


@translates("conv2d", takes_pads=True)
def conv2d(
    low: Lowering,
    x: Value,
    weight: Weight,
    bias: Weight | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> str:
    """``torch.nn.functional.conv2d``, and with a `padding_mode` the module."""
    if padding_mode != "zeros":
        raise low.refusal(f"pads by {padding_mode!r}", "pad with zeros")
    stored = low.store(weight), tuple(weight.tensor.shape)
    shift = low.store(bias) if bias is not None else ""
    return convolution(low, x, stored, shift, stride, padding, dilation, groups)


def convolution(
    low: Lowering,
    x: Value,
    weight: tuple[str, Shape],
    bias: str,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> str:
    """A Conv and the normalisation that belongs behind it; `weight` is a name and a shape, `bias` a name or empty."""
    kernel = pair(weight[1][2:])
    pads = _sum(x.pads, _padding(padding, kernel, pair(dilation)))
    if any(pad > (size - 1) * reach for pad, size, reach in zip(pads, kernel * 2, pair(dilation) * 2, strict=True)):
        x, pads = low.padded(replace(x, pads=pads)), NO_PADS  # a window would lie in the padding alone
    attributes = {
        "kernel_shape": list(kernel),
        "strides": list(pair(stride)),
        "dilations": list(pair(dilation)),
        "group": groups,
        "pads": list(pads),
    }
    out = low.emit("Conv", [x.name, weight[0], *([bias] if bias else [])], attributes)
    return out if low.only_reader_is(*_NORMS) else _identity_norm(low, out, weight[1][0])


@translates("pad", takes_pads=True)
def pad(low: Lowering, x: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """``torch.nn.functional.pad``: zeros around images wait for the convolution behind them; others are a node."""
    if mode != "constant" or value or min(pad) < 0:
        raise low.refusal(f"pads by {mode!r} with {value or 0} and the sizes {list(pad)}", "pad with zeros")
    if len(pad) <= 4 and len(x.shape) == 4:
        left, right, top, bottom = (*pad, 0, 0)[:4]
        return replace(x, shape=low.shape, pads=_sum(x.pads, (top, left, bottom, right)))
    before, after = [*pad[::2]], [*pad[1::2]]
    missing = [0] * (len(x.shape) - len(before))
    inside = _sum_sides(x)
    front = [a + b for a, b in zip([*missing, *before[::-1]], inside[0], strict=True)]
    back = [a + b for a, b in zip([*missing, *after[::-1]], inside[1], strict=True)]
    return low.emit("Pad", [x.name, low.integers([*front, *back])])


@translates("zero_pad", takes_pads=True)
def zero_pad(low: Lowering, x: Value, padding: Sequence[int]) -> Any:
    """``torch.nn.ZeroPad2d``."""
    return pad(low, x, padding)


def _sum(one: Pads, other: Pads) -> Pads:
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3])


def _sum_sides(x: Value) -> tuple[list[int], list[int]]:
    """The zeros that `x` lacks in front of and behind each axis."""
    none = [0] * (len(x.shape) - 2)
    return [*none, *x.pads[:2]], [*none, *x.pads[2:]]


def _padding(padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> Pads:
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":  # torch allows it at stride 1 only; an odd pixel goes to the bottom and right
        total = [reach * (size - 1) for size, reach in zip(kernel, dilation, strict=True)]
        return total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2
    top, left = pair(padding)
    return top, left, top, left


def _identity_norm(low: Lowering, out: str, channels: int) -> str:
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    parts = (("scale", ones), ("shift", zeros), ("mean", zeros), ("var", ones))
    names = [low.store(values, f"identity.{part}") for part, values in parts]
    return low.emit("BatchNormalization", [out, *names], {"epsilon": 0.0}, part="bn")
