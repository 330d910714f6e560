"""One frame or tensor: what is accepted, and how a frame becomes the model's input."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import Preprocessing
from edge_runtime.errors import InputError

__all__ = [
    "Frame",
    "Tensor",
    "check_finite",
    "check_frame",
    "check_labels",
    "fit",
    "normalise",
    "preprocess",
    "preprocess_all",
]

Frame = npt.NDArray[np.uint8]
Tensor = npt.NDArray[np.float32]


def check_frame(frame: object) -> Frame:
    """Return `frame` as it is, or raise `InputError` unless it is a non-empty uint8 array [H, W, 3]."""
    if not isinstance(frame, np.ndarray):
        raise InputError(f"a frame is a numpy array, got {type(frame).__name__}", hint="use numpy.asarray(image)")
    if frame.ndim != 3 or frame.shape[2] != 3:
        hint = "RGB, height x width x 3"
        hint += "; repeat a grey image three times: numpy.stack([grey] * 3, axis=-1)" if frame.ndim == 2 else ""
        hint += "; drop the alpha channel: frame[..., :3]" if frame.ndim == 3 and frame.shape[2] == 4 else ""
        raise InputError(f"a frame has the shape [H, W, 3], got {list(frame.shape)}", hint=hint)
    if frame.dtype != np.uint8:
        raise InputError(
            f"a frame has dtype uint8 (0 to 255), got {frame.dtype}",
            hint="prepared float tensors go through model.infer",
        )
    if frame.size == 0:
        raise InputError(f"the frame is empty: shape {list(frame.shape)}")
    return frame


def check_labels(labels: object, count: int, classes: int | None = None) -> npt.NDArray[np.int64]:
    """Return `labels` as int64 [count], or raise `InputError`; with `classes`, every label must be in [0, classes)."""
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"labels are a list of class indices, got {array.dtype} of shape {list(array.shape)}")
    if len(array) != count:
        raise InputError(f"{len(array)} labels for {count} images", hint="give one label per image, in the same order")
    if count and (array.min() < 0 or (classes is not None and array.max() >= classes)):
        worst = int(array.min() if array.min() < 0 else array.max())
        known = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise InputError(f"label {worst} is not a class of this model", hint=f"its classes are {known}")
    return array.astype(np.int64)


def check_finite(name: str, array: npt.NDArray[Any]) -> None:
    """Raise `InputError` if a float array holds NaN or infinity; shapes and dtypes are checked by the session."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"input {name!r} holds NaN or infinity", hint="check what produced it; nothing was run")


def fit(frame: object, spec: Preprocessing) -> Frame:
    """Resize a frame to uint8 [spec.height, spec.width, 3]; the same array where it has that size already."""
    checked = check_frame(frame)
    if checked.shape[:2] == (spec.height, spec.width):
        return checked
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(checked))
    return np.asarray(picture.resize((spec.width, spec.height), Image.Resampling.BILINEAR))


def normalise(image: Frame, spec: Preprocessing) -> Tensor:
    """Turn uint8 [H, W, 3] into a contiguous float32 [3, H, W] by ``(pixel * scale - mean) / std``."""
    factor, offset = _affine(spec)
    tensor = np.empty((3, *image.shape[:2]), np.float32)
    tensor[...] = image.transpose(2, 0, 1)
    tensor *= factor
    tensor += offset
    return tensor


def preprocess(frame: object, spec: Preprocessing) -> Tensor:
    """Turn a uint8 RGB frame [h, w, 3] of any size into the model input float32 [3, H, W]. Raises `InputError`."""
    return normalise(fit(frame, spec), spec)


def preprocess_all(frames: Iterable[object], spec: Preprocessing) -> Tensor:
    """`preprocess` for several frames: float32 [N, 3, H, W]."""
    tensors = [preprocess(frame, spec) for frame in frames]
    if not tensors:
        raise InputError("there are no images in the samples", hint="give at least one, better 64 or more")
    return np.stack(tensors)


@lru_cache(maxsize=8)
def _affine(spec: Preprocessing) -> tuple[Tensor, Tensor]:
    std = np.asarray(spec.std, np.float64).reshape(3, 1, 1)
    mean = np.asarray(spec.mean, np.float64).reshape(3, 1, 1)
    return (spec.scale / std).astype(np.float32), (-mean / std).astype(np.float32)
