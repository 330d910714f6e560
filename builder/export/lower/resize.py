"""Upsampling and downsampling of images by interpolation. Scales are written, not sizes: the batch stays free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from builder.export.lower.table import translates
from builder.export.lower.values import Value

if TYPE_CHECKING:
    from builder.export.lower.walk import Lowering

__all__ = ["interpolate"]


@translates("interpolate", "upsample")
def interpolate(
    low: Lowering,
    x: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> str:
    """``torch.nn.functional.interpolate``, nearest or bilinear, to the size that it was traced with.

    torch samples by the given `scale_factor`, ONNX by the ratio of the sizes; where they differ it is refused.
    """
    if mode not in ("nearest", "bilinear") or antialias or len(x.shape) != 4:
        raise low.refusal(f"interpolates by {mode!r}", "use nearest or bilinear without antialiasing")
    sizes = [(given, wanted) for given, wanted in zip(x.shape[2:], low.shape[2:], strict=True)]
    if scale_factor is not None and not recompute_scale_factor:
        _check_factors(low, scale_factor, sizes)
    if x.shape == low.shape:
        return x.name
    if mode == "nearest" and not all(_same_pixels(*each) for each in sizes):
        raise low.refusal(f"takes other pixels of {sizes} than ONNX would", "use a whole factor, or bilinear")
    scales = np.array([1, 1, *(_scale(*each) for each in sizes)], np.float32)
    if mode == "nearest":
        attributes = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        corners = "align_corners" if align_corners else "half_pixel"
        attributes = {"mode": "linear", "coordinate_transformation_mode": corners}
    return low.emit("Resize", [x.name, "", low.store(scales, "scales")], attributes)


@translates("upsample_nearest2d", "upsample_bilinear2d")
def upsample(low: Lowering, x: Value, size: Any, *more: Any) -> str:
    """The aten operators: ``(size, scales)``, for the bilinear one with `align_corners` between."""
    corners = more[0] if len(more) == 2 else None
    mode = "nearest" if corners is None else "bilinear"
    return interpolate(low, x, size, more[-1], mode, corners)


def _check_factors(low: Lowering, scale_factor: Any, sizes: list[tuple[int, int]]) -> None:
    factors = [scale_factor] * 2 if isinstance(scale_factor, int | float) else list(scale_factor)
    for factor, (given, wanted) in zip(factors, sizes, strict=True):
        if abs(given * factor - wanted) > 1e-6:
            raise low.refusal(f"scales {given} pixels by {factor}", "give the size, or a factor that fits")


def _scale(given: int, wanted: int) -> np.float32:
    """The least float32 of at least wanted / given that makes `wanted` of `given` pixels when it is rounded down."""
    scale = np.float32(wanted / given)
    while int(scale * np.float32(given)) < wanted or int(float(scale) * given) < wanted:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def _same_pixels(given: int, wanted: int) -> bool:
    """Whether a nearest resize reads the same pixels by the float32 scale as by the ratio of the sizes."""
    places = np.arange(wanted)
    return bool(np.all(np.floor(places.astype(np.float32) / _scale(given, wanted)) == places * given // wanted))
