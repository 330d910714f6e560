"""Tiny-ImageNet, 100 classes: decoded, enlarged to what the network takes, and cut into splits.

Test is the set's own (its authors' validation images). What the arms search on and what the prior is measured on are
cut from the training images, and nobody trains on them. The networks begin from ImageNet weights, from whose images
this set was made: absolute accuracies are too good, for every arm alike.
"""

# ruff: noqa: TID251 - a bench may use the builder; only the runtime must not

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from builder.data import Augmentation, ImageSet
from builder.files import read_npz
from builder.mobilenet import MEAN, STD
from edge_runtime.bundle import Preprocessing
from edge_runtime.errors import InputError
from edge_runtime.inputs import fit

__all__ = ["AUGMENTATION", "SPEC", "TinyImages", "imagenet_rows", "load_images"]

FILE_NAME = "tinyimagenet100_64px.npz"
LABELS = Path("weights") / "imagenet_labels.txt"

PIXELS = 96
"""Side that the images are enlarged to. The ImageNet weights want objects as large as at 224 px: at 64 px they lose
most of what they know, at 112 px two cores see the training images hardly more than once in an arm's time."""

SPEC = Preprocessing(height=PIXELS, width=PIXELS, mean=MEAN, std=STD)

AUGMENTATION = Augmentation()
"""Of the oracle and of every arm: the default of `nnf-build train`."""

PER_CLASS = {"search": 10, "validation": 10}
"""Training images of each class that are kept back."""

QUICK_PER_CLASS = {"train": 4, "search": 1, "validation": 1, "test": 2}

_KEYS = tuple(f"{part}_{name}" for part in ("train", "test") for name in ("jpeg", "offsets", "fine"))

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TinyImages:
    """The splits, and the names of the classes in the order of the labels."""

    train: ImageSet
    """What the oracle and the arms train on."""

    search: ImageSet
    """With labels: what every arm's subnets are chosen on."""

    validation: ImageSet
    """For the prior, without labels, and for figures of the training."""

    test: ImageSet
    """What is reported."""

    class_names: tuple[str, ...]


def load_images(folder: Path, *, seed: int, quick: bool = False) -> TinyImages:
    """Decode all splits; with `quick` a few images of each class.

    Raises:
        InputError: the set is missing, damaged or holds an image that cannot be decoded.
    """
    hint = f"point --data (or $NNF_DATA) at the folder that holds {FILE_NAME}"
    arrays = read_npz(folder / FILE_NAME, (*_KEYS, "fine_names"), hint=hint)
    labels = {part: arrays[f"{part}_fine"].astype(np.int64) for part in ("train", "test")}
    parts = {name: ("train", chosen) for name, chosen in _cut(labels["train"], seed).items()}
    parts["test"] = ("test", np.arange(len(labels["test"])))
    if quick:
        parts = {name: (part, _few(chosen, labels[part], name)) for name, (part, chosen) in parts.items()}
    sets = {
        name: ImageSet(
            _decoded(arrays[f"{part}_jpeg"], arrays[f"{part}_offsets"], chosen), labels[part][chosen], MEAN, STD
        )
        for name, (part, chosen) in parts.items()
    }
    return TinyImages(**sets, class_names=tuple(str(name) for name in arrays["fine_names"]))


def _cut(labels: Indices, seed: int) -> dict[str, Indices]:
    """Training, search and validation images, as many of each class, in random order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    ranks = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        ranks[own] = np.arange(len(own))
    search, kept = PER_CLASS["search"], sum(PER_CLASS.values())
    return {
        "search": order[ranks[order] < search],
        "validation": order[(ranks[order] >= search) & (ranks[order] < kept)],
        "train": order[ranks[order] >= kept],
    }


def _few(chosen: Indices, labels: Indices, name: str) -> Indices:
    counts: dict[int, int] = {}
    kept = []
    for index in chosen:
        label = int(labels[index])
        counts[label] = counts.get(label, 0) + 1
        if counts[label] <= QUICK_PER_CLASS[name]:
            kept.append(index)
    return np.asarray(kept, np.int64)


def _decoded(jpeg: npt.NDArray[np.uint8], offsets: Indices, chosen: Indices) -> npt.NDArray[np.uint8]:
    """The chosen images, uint8 [n, side, side, 3], enlarged as the runtime enlarges frames."""
    content = jpeg.tobytes()
    images = np.empty((len(chosen), SPEC.height, SPEC.width, 3), np.uint8)
    for place, index in enumerate(chosen):
        try:
            with Image.open(io.BytesIO(content[offsets[index] : offsets[index + 1]])) as image:
                images[place] = fit(np.asarray(image.convert("RGB")), SPEC)
        except OSError as error:
            raise InputError(f"image {index} of Tiny-ImageNet cannot be decoded: {error}") from error
    return images


def imagenet_rows(folder: Path, class_names: tuple[str, ...]) -> list[int]:
    """For each class its row in the 1,001-way ImageNet classifier.

    Raises:
        InputError: the list of ImageNet's classes is missing, or lacks a class.
    """
    path = folder / LABELS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}", hint="it belongs to the data folder's weights") from error
    known = {name.strip(): row for row, line in enumerate(lines) for name in line.split(",")}
    missing = [name for name in class_names if name not in known]
    if missing:
        raise InputError(f"{path} lacks the class {missing[0]!r}", hint="it belongs to the data folder's weights")
    return [known[name] for name in class_names]
