"""What a path names: a folder of images, one folder per class, a folder of splits, or an .npz."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from builder.data.folder import ImageFolder
from builder.data.images import ImageSet
from edge_runtime.bundle import Preprocessing
from edge_runtime.errors import InputError
from edge_runtime.inputs import list_folder, load_npz

__all__ = ["DataFolder", "open_data"]

TRAIN, VALIDATION = ("train",), ("val", "valid", "validation")
"""Names of the folders of a set that comes split already."""

HELD_OUT_SHARE, LEAST_HELD_OUT, MOST_HELD_OUT = 0.1, 2, 1000


@dataclass(frozen=True, slots=True)
class DataFolder:
    """Images to train on and images that are held out."""

    train: ImageSet | ImageFolder
    validation: ImageSet | ImageFolder
    """Never trained on; its labels serve for figures only."""

    class_names: tuple[str, ...]
    """Names that the data itself gives; empty where it has none."""


def open_data(path: Path, spec: Preprocessing, *, class_names: Sequence[str] = (), seed: int = 0) -> DataFolder:
    """Open the data that `path` names.

    Args:
        path: a folder of images (unlabelled), one with a folder of images per class (labelled), one with such folders
            named ``train`` and ``val``, ``valid`` or ``validation``, or an .npz with `images` uint8 [N, H, W, 3] and
            optional `labels` and `class_names`. Where there is no held-out part, a tenth is held out, also of a folder
            with ``train`` alone.
        spec: size and normalisation of the network's input; images are resized as the runtime does it.
        class_names: the model's classes; folders and named labels are matched with them. Empty: the data's own.
        seed: chooses what is held out.

    Raises:
        InputError: there is nothing, too little, or something else.
    """
    training, held_out = _part(path, TRAIN), _part(path, VALIDATION)
    if training is not None and held_out is not None:
        train, names = _open(training, spec, class_names)
        validation, _ = _open(held_out, spec, class_names or names)
        return DataFolder(train, validation, names)
    if held_out is not None and training is None and _is_part(held_out):
        raise InputError(
            f"{path} has a folder {held_out.name!r} and none named 'train'",
            hint="name the folder of training images 'train', or give the folder of the classes itself",
        )
    whole = training if training is not None and _is_part(training) else path
    images, names = _open(whole, spec, class_names)
    train, validation = _split(images, seed)
    return DataFolder(train, validation, names)


def _part(path: Path, names: Sequence[str]) -> Path | None:
    return next((path / name for name in names if (path / name).is_dir()), None)


def _is_part(path: Path) -> bool:
    """Whether it is a part of a set, as it holds folders or stands alone, and not a class that is called so."""
    alone = sum(entry.is_dir() for entry in path.parent.iterdir()) == 1
    return alone or any(entry.is_dir() for entry in path.iterdir())


def _open(path: Path, spec: Preprocessing, classes: Sequence[str]) -> tuple[ImageSet | ImageFolder, tuple[str, ...]]:
    if path.is_dir():
        listing = list_folder(path, class_names=classes)
        return ImageFolder(listing, spec), listing.class_names
    if path.suffix == ".npz" and path.is_file():
        samples = load_npz(path, class_names=classes)
        images = ImageSet.of(samples, spec)
        if classes and images.labels is not None and images.labels.max() >= len(classes):
            raise InputError(
                f"label {images.labels.max()} in {path} is not a class of this model",
                hint=f"its classes are 0 to {len(classes) - 1}",
            )
        return images, samples.class_names
    what = "does not exist" if not path.exists() else "is neither a folder nor an .npz file"
    raise InputError(f"the data {str(path)!r} {what}", hint="give a folder of images or an .npz file")


def _split(images: ImageSet | ImageFolder, seed: int) -> tuple[ImageSet | ImageFolder, ImageSet | ImageFolder]:
    """A random tenth is held out."""
    count = min(MOST_HELD_OUT, max(LEAST_HELD_OUT, round(HELD_OUT_SHARE * len(images))))
    if len(images) <= 2 * count:
        raise InputError(f"{len(images)} images are too few to train on and hold some out", hint="give 100 or more")
    order = np.random.default_rng(seed).permutation(len(images))
    return images.take(sorted(order[count:])), images.take(sorted(order[:count]))
