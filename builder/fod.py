"""FOD-A, debris on airport ground: its boxes cut out as a classification set, held in memory.

Splits are by time inside each video: test is the set's own `is_test` (the last frames of each video), validation the
last 15 % of the frames before it, after a gap. Test frames show the scenes of the training frames, so accuracies on
them are optimistic; conditions are confounded with scene and object. Quote figures with both caveats.

Source: Munyer et al. 2021, arXiv 2110.03072 (MIT). The images are read from where the user keeps them, never shipped.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from builder.files import read_npz, write_atomically
from edge_runtime.errors import InputError

__all__ = ["CONDITIONS", "FILE_NAME", "SPLITS", "FodCrops", "load_crops", "split_frames"]

FILE_NAME = "fod_a_224px.npz"
CONDITIONS = ("dry/bright", "wet/dim", "dry/dim", "dry/dark")
"""Weather and light of a crop; `FodCrops.conditions` are indices into this."""

SPLITS = ("train", "validation", "test", "gap")
"""`FodCrops.splits` are indices into this; gap frames belong to no split."""

VALIDATION_PERCENT = 15
GAP_PERCENT = 5
MARGIN = 0.2
"""Ground kept around a box on each side, as a part of the longer side of the box."""

_KEYS = ("jpeg", "offsets", "boxes_xyxy", "box_label", "box_image", "weather", "light", "weather_names", "light_names")
_KEYS += ("is_test", "video", "class_names")
_CACHED = ("images", "labels", "splits", "conditions", "videos", "class_names")


@dataclass(frozen=True, slots=True)
class FodCrops:
    """Square crops with their labels. Raises `InputError` when the arrays do not belong together."""

    images: npt.NDArray[np.uint8]
    """RGB [N, size, size, 3]."""

    labels: npt.NDArray[np.int64]
    """[N], indices into `class_names`."""

    splits: npt.NDArray[np.uint8]
    """[N], indices into `SPLITS`."""

    conditions: npt.NDArray[np.uint8]
    """[N], indices into `CONDITIONS`."""

    videos: npt.NDArray[np.int16]
    """[N], which video the frame is from; frames of one video are near-duplicates."""

    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[1] != self.images.shape[2] or self.images.dtype != np.uint8:
            raise InputError(f"crops are square uint8 RGB images, got {self.images.dtype} {self.images.shape}")
        lengths = {len(array) for array in (self.images, self.labels, self.splits, self.conditions, self.videos)}
        if len(lengths) != 1:
            raise InputError(f"the arrays of the crops have different lengths: {sorted(lengths)}")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise InputError(f"a label is outside the {len(self.class_names)} class names")

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, name: str) -> FodCrops:
        """The crops of one of `SPLITS`."""
        return self._where(self.splits == _index(SPLITS, name, "split"))

    def condition(self, *names: str) -> FodCrops:
        """The crops taken under any of the named `CONDITIONS`."""
        return self._where(np.isin(self.conditions, [_index(CONDITIONS, name, "condition") for name in names]))

    def common_classes(self) -> tuple[str, ...]:
        """Names of the classes that exist in all four conditions (14 in FOD-A), in the order of `class_names`."""
        seen = [np.unique(self.labels[self.conditions == index]) for index in range(len(CONDITIONS))]
        return tuple(name for i, name in enumerate(self.class_names) if all(i in labels for labels in seen))

    def only_classes(self, names: Sequence[str]) -> FodCrops:
        """The crops of the named classes, labelled 0..len(names) - 1 in the order of `names`."""
        renumber = np.full(len(self.class_names), -1, np.int64)
        renumber[[_index(self.class_names, name, "class") for name in names]] = np.arange(len(names))
        labels = renumber[self.labels]
        keep = labels >= 0
        chosen = (self.splits[keep], self.conditions[keep], self.videos[keep])
        return FodCrops(self.images[keep], labels[keep], *chosen, tuple(names))

    def _where(self, keep: npt.NDArray[np.bool_]) -> FodCrops:
        chosen = (self.splits[keep], self.conditions[keep], self.videos[keep])
        return FodCrops(self.images[keep], self.labels[keep], *chosen, self.class_names)


def split_frames(is_test: npt.NDArray[np.bool_], videos: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """For each frame its index into `SPLITS`; frames of a video are in order of time."""
    splits = np.zeros(len(videos), np.uint8)
    splits[is_test] = SPLITS.index("test")
    for video in np.unique(videos):
        frames = np.flatnonzero((videos == video) & ~is_test)
        validation = -(-len(frames) * VALIDATION_PERCENT // 100)
        gap = max(1, len(frames) * GAP_PERCENT // 100)
        first = len(frames) - validation
        splits[frames[first:]] = SPLITS.index("validation")
        splits[frames[max(first - gap, 0) : first]] = SPLITS.index("gap")
    return splits


def load_crops(data: Path, *, size: int = 112, cache: Path | None = None) -> FodCrops:
    """Cut every box of the set in the folder `data` out as a square of `size` pixels.

    With `cache`, a folder of your own that is not under version control, the crops are kept there as an .npz.
    Raises `InputError` when the set is missing or damaged.
    """
    kept = cache / f"fod_crops_{size}px.npz" if cache else None
    if kept is not None and (crops := _read_cache(kept)) is not None:
        return crops
    arrays = read_npz(data / FILE_NAME, _KEYS, hint=f"point --data at the folder that holds {FILE_NAME}")
    frames = arrays["box_image"]
    crops = FodCrops(
        images=_cut_all(arrays, size),
        labels=arrays["box_label"].astype(np.int64),
        splits=split_frames(arrays["is_test"], arrays["video"])[frames],
        conditions=_conditions(arrays)[frames],
        videos=arrays["video"][frames],
        class_names=tuple(str(name) for name in arrays["class_names"]),
    )
    if kept is not None:
        _write_cache(kept, crops)
    return crops


def _index(names: Sequence[str], name: str, what: str) -> int:
    if name not in names:
        raise InputError(f"unknown {what} {name!r}", hint=f"it is one of {', '.join(names)}")
    return names.index(name)


def _conditions(arrays: Mapping[str, np.ndarray]) -> npt.NDArray[np.uint8]:
    weather = arrays["weather_names"][arrays["weather"]]
    light = arrays["light_names"][arrays["light"]]
    names = [f"{w}/{b}" for w, b in zip(weather, light, strict=True)]
    return np.asarray([_index(CONDITIONS, name, "condition") for name in names], np.uint8)


def _cut_all(arrays: Mapping[str, np.ndarray], size: int) -> npt.NDArray[np.uint8]:
    jpeg, offsets = arrays["jpeg"].tobytes(), arrays["offsets"]
    crops = np.empty((len(arrays["box_image"]), size, size, 3), np.uint8)
    for index, (frame, box) in enumerate(zip(arrays["box_image"], arrays["boxes_xyxy"], strict=True)):
        try:
            with Image.open(io.BytesIO(jpeg[offsets[frame] : offsets[frame + 1]])) as image:
                crops[index] = _cut(image.convert("RGB"), box, size)
        except OSError as error:
            raise InputError(f"image {frame} of the FOD-A set cannot be decoded: {error}") from error
    return crops


def _cut(image: Image.Image, box: np.ndarray, size: int) -> np.ndarray:
    """A square around `box` (xyxy) with the margin; moved inside the image where it would stick out."""
    side = min(float(max(box[2] - box[0], box[3] - box[1])) * (1 + 2 * MARGIN), *map(float, image.size))
    left = min(max(float(box[0] + box[2] - side) / 2, 0.0), image.width - side)
    top = min(max(float(box[1] + box[3] - side) / 2, 0.0), image.height - side)
    square = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=square))


def _read_cache(path: Path) -> FodCrops | None:
    """The cached crops, or None where there are none or the file is damaged (it is made again then)."""
    try:
        arrays = read_npz(path, _CACHED, hint="")
        names = tuple(str(name) for name in arrays.pop("class_names"))
        return FodCrops(**arrays, class_names=names)
    except InputError:
        return None


def _write_cache(path: Path, crops: FodCrops) -> None:
    arrays = {name: np.asarray(getattr(crops, name)) for name in _CACHED}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
