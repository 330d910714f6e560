"""Data sets read from disk: folders of images and .npz files. Nothing is unpickled, nothing is written."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import InputError
from edge_runtime.inputs.frames import Frame, check_frame, check_labels

__all__ = [
    "Listing",
    "Samples",
    "list_folder",
    "load_folder",
    "load_npz",
    "load_samples",
    "most_unreadable",
    "read_image",
]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"})
UNREADABLE_SHARE = 0.05
"""Largest share of a folder's image files that may be damaged; one may be in any case, but not all."""

MAX_NPZ_BYTES = 2**31
"""Largest unpacked size of an .npz that is read: 2 GiB."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Images to adapt to, with labels where there are some. Raises `InputError` when built invalid."""

    images: tuple[Frame, ...]
    """One or more uint8 arrays [H, W, 3] in RGB, sizes may differ."""

    labels: npt.NDArray[np.int64] | None = None
    """Class index of each image, or None where the images are unlabelled."""

    names: tuple[str, ...] = ()
    """Where each image came from (file name or ``images[3]``), for messages and reports."""

    conditions: tuple[str, ...] = ()
    """Condition of each image (``night``) where the data set says it, else empty."""

    class_names: tuple[str, ...] = ()
    """Names of the label indices where the data set says them, else empty."""

    skipped: tuple[str, ...] = ()
    """Why images of the folder are not among these, one message each."""

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("there are no images in the samples", hint="give at least one, better 64 or more")
        object.__setattr__(self, "images", tuple(check_frame(image) for image in self.images))
        if self.labels is not None:
            object.__setattr__(self, "labels", check_labels(self.labels, len(self.images)))
        for what, entries in (("names", self.names), ("conditions", self.conditions)):
            if entries and len(entries) != len(self.images):
                raise InputError(f"{len(entries)} {what} for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True)
class Listing:
    """The image files of a folder; see `list_folder`."""

    files: tuple[Path, ...]
    """One or more, in a fixed order."""

    labels: npt.NDArray[np.int64] | None
    """Class index of each file, or None where the images are unlabelled."""

    class_names: tuple[str, ...]
    """Names of the label indices; empty where the images are unlabelled."""


def load_samples(
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] = (),
    limit: int | None = None,
    size: tuple[int, int] | None = None,
) -> Samples:
    """Read a folder of images or an .npz file.

    Args:
        path: A directory (see `load_folder`) or a file ending in ``.npz`` (see `load_npz`).
        class_names: The model's classes; class-name subfolders, and the classes that an .npz names, are matched with
            them.
        limit: Read at most this many images, evenly spread over the data set; None reads all.
        size: (height, width) in pixels that folder images are resized to as they are read, so that a folder of
            12-megapixel photos does not fill the memory; None keeps their size.

    Raises:
        InputError: The path is missing, empty, unreadable or not such a data set.
    """
    if not os.fspath(path):
        raise InputError("the data path is empty", hint="give a folder of images or an .npz file")
    where = Path(path)
    if where.is_dir():
        return load_folder(where, class_names=class_names, limit=limit, size=size)
    if where.suffix == ".npz" and where.is_file():
        return load_npz(where, class_names=class_names, limit=limit)
    what = "does not exist" if not where.exists() else "is neither a directory nor an .npz file"
    raise InputError(f"the data path {os.fspath(path)!r} {what}", hint="give a folder of images or an .npz file")


def load_folder(
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] = (),
    limit: int | None = None,
    size: tuple[int, int] | None = None,
) -> Samples:
    """Read image files directly in `path` (unlabelled), or in subfolders named by class (labelled).

    Arguments and errors are those of `load_samples`. Hidden files and files of other types are left out, and so are
    damaged images, `most_unreadable` of them at most.
    """
    where = Path(path)
    listing = list_folder(where, class_names=class_names)
    kept = _spread(len(listing.files), limit)
    images, read, skipped = _read_images(listing.files, kept, size)
    names = tuple(listing.files[index].relative_to(where).as_posix() for index in read)
    labels = None if listing.labels is None else listing.labels[read]
    return Samples(images, labels, names, (), listing.class_names, skipped)


def _read_images(
    files: Sequence[Path], kept: Sequence[int], size: tuple[int, int] | None
) -> tuple[tuple[Frame, ...], list[int], tuple[str, ...]]:
    """The images that can be read, their indices, and what is wrong with the others."""
    images: list[Frame] = []
    read: list[int] = []
    skipped: list[str] = []
    most = most_unreadable(len(kept))
    for index in kept:
        try:
            images.append(read_image(files[index], size))
            read.append(index)
        except InputError as error:
            skipped.append(error.message)
            if len(skipped) > most > 0:
                raise InputError(
                    f"{error.message}, and it is not the first: of {len(kept)} images at most {most} may be unreadable",
                    hint="remove the damaged ones from the data",
                ) from error
            if not most:
                raise
    return tuple(images), read, tuple(skipped)


def most_unreadable(count: int) -> int:
    """How many of so many image files may be damaged before reading them is an error."""
    return min(max(1, int(UNREADABLE_SHARE * count)), count - 1)


def list_folder(path: str | os.PathLike[str], *, class_names: Sequence[str] = ()) -> Listing:
    """The image files directly in `path` (unlabelled), or in subfolders named by class (labelled); opens none of them.

    Errors are those of `load_samples`.
    """
    where = Path(path)
    try:
        folders = sorted(entry for entry in where.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        files = _image_files(where)
        labelled = [(file, folder.name) for folder in folders for file in _image_files(folder)]
    except OSError as error:
        raise InputError(f"the data directory {os.fspath(path)!r} cannot be read: {error.strerror}") from error
    if files and labelled:
        raise InputError(
            f"{os.fspath(path)!r} holds images and folders of images",
            hint="use one: files alone, or one folder per class",
        )
    if not files and not labelled:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(
            f"there are no images in {os.fspath(path)!r}", hint=f"files of these kinds are read: {suffixes}"
        )
    if files:
        return Listing(tuple(files), None, ())
    names = tuple(class_names) or tuple(sorted({name for _, name in labelled}))
    if unknown := sorted({name for _, name in labelled} - set(names)):
        raise InputError(
            f"folder {unknown[0]!r} is not a class of this model", hint=f"its classes are {', '.join(names)}"
        )
    labels = np.array([names.index(name) for _, name in labelled], np.int64)
    return Listing(tuple(file for file, _ in labelled), labels, names)


def load_npz(path: str | os.PathLike[str], *, class_names: Sequence[str] = (), limit: int | None = None) -> Samples:
    """Read an .npz: `images` uint8 [N, H, W, 3], or JPEG files end to end in `jpeg` uint8 with `offsets` int [N + 1].

    Optional: `labels` int [N], `conditions` str [N], `class_names` str [K]. Nothing is unpickled. Where the file names
    its classes and `class_names` are given, labels are renumbered to the order of these.
    """
    arrays = _read_arrays(path)
    count = len(arrays["images"]) if "images" in arrays else len(arrays["offsets"]) - 1
    if count < 1:
        raise InputError(f"there are no images in {os.fspath(path)!r}")
    for key in ("labels", "conditions"):
        if key in arrays and arrays[key].shape != (count,):
            raise InputError(
                f"{os.fspath(path)!r} holds {key} of shape {list(arrays[key].shape)} for {count} images",
                hint="give one per image, in the same order",
            )
    kept = _spread(count, limit)
    images = tuple(arrays["images"][index] for index in kept) if "images" in arrays else _decode(arrays, kept)
    own = tuple(str(name) for name in arrays.get("class_names", ()))
    labels = arrays["labels"][kept] if "labels" in arrays else None
    if labels is not None and own and class_names:
        labels, own = _renumbered(labels, own, class_names), tuple(class_names)
    return Samples(
        images,
        labels,
        tuple(f"images[{index}]" for index in kept),
        tuple(str(arrays["conditions"][index]) for index in kept) if "conditions" in arrays else (),
        own,
    )


def _renumbered(labels: npt.NDArray[Any], own: Sequence[str], class_names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Labels that index `own`, as indices of `class_names`."""
    checked = check_labels(labels, len(labels), len(own))
    used = {int(label) for label in checked}
    if unknown := sorted({own[label] for label in used} - set(class_names)):
        raise InputError(
            f"{unknown[0]!r} is not a class of this model", hint=f"its classes are {', '.join(class_names)}"
        )
    number = {label: class_names.index(own[label]) for label in used}
    return np.array([number[int(label)] for label in checked], np.int64)


def _read_arrays(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    keys = ("images", "jpeg", "offsets", "labels", "conditions", "class_names")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked_bytes = sum(info.file_size for info in archive.infolist())
        if unpacked_bytes > MAX_NPZ_BYTES:
            raise InputError(
                f"{os.fspath(path)!r} unpacks to {unpacked_bytes} bytes", hint=f"at most {MAX_NPZ_BYTES} are read"
            )
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in keys if key in file.files}
    except InputError:
        raise
    except Exception as error:  # zipfile, its decompressors and numpy share no base class
        raise InputError(f"{os.fspath(path)!r} cannot be read as an .npz: {error}") from error
    if "images" not in arrays and not {"jpeg", "offsets"} <= arrays.keys():
        raise InputError(
            f"{os.fspath(path)!r} holds no images", hint="store uint8 'images' [N, H, W, 3], or 'jpeg' with 'offsets'"
        )
    if flat := [key for key, array in arrays.items() if array.ndim == 0]:
        raise InputError(f"{os.fspath(path)!r} holds {flat[0]!r} as a single value, not as an array")
    return arrays


def _decode(arrays: dict[str, npt.NDArray[Any]], kept: Sequence[int]) -> tuple[Frame, ...]:
    data, offsets = arrays["jpeg"], arrays["offsets"]
    valid = data.ndim == 1 and data.dtype == np.uint8 and offsets.ndim == 1 and offsets.dtype.kind in "iu"
    if not valid or (np.diff(offsets.astype(np.int64)) <= 0).any() or offsets[0] < 0 or offsets[-1] > len(data):
        raise InputError(
            "'jpeg' and 'offsets' do not belong together", hint="offsets rise from 0 to the length of jpeg"
        )
    from io import BytesIO

    return tuple(read_image(BytesIO(data[offsets[i] : offsets[i + 1]].tobytes()), None, f"images[{i}]") for i in kept)


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    )


def read_image(source: Any, size: tuple[int, int] | None, name: str | None = None) -> Frame:
    """Decode one image upright and in RGB, uint8 [H, W, 3]; `size` is (height, width). Raises `InputError`."""
    import warnings

    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as picture:
                upright = ImageOps.exif_transpose(picture).convert("RGB")
                if size is not None and upright.size != (size[1], size[0]):
                    upright = upright.resize((size[1], size[0]), Image.Resampling.BILINEAR)
                return np.asarray(upright)
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over
        what = "it is no image" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(
            f"image {name or os.fspath(source)!r} cannot be read: {what}", hint="remove it from the data"
        ) from error


def _spread(count: int, limit: int | None) -> list[int]:
    """Indices of at most `limit` of `count` things, evenly spread."""
    if limit is not None and limit < 1:
        raise InputError(f"the number of images to read is {limit}", hint="give 1 or more")
    kept = count if limit is None else min(count, limit)
    return [index * count // kept for index in range(kept)]
