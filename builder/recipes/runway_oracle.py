"""The oracle of the runway recipe: ImageNet MobileNetV2 fine-tuned on FOD-A crops at 112 px."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from builder import checkpoint
from builder.data import Augmentation, ImageSet
from builder.fit import FitConfig, accuracy, fit
from builder.fod import CONDITIONS, SPLITS, FodCrops
from builder.mobilenet import MEAN, STD, MobileNetV2, load_folded, recenter_batch_norms
from builder.runlog import RunLog
from edge_runtime.errors import StateError

__all__ = ["AUGMENTATION", "RESOLUTION", "WEIGHTS", "as_image_set", "default_config", "load_oracle", "train_oracle"]

RESOLUTION = 112
"""Side of the crops in pixels."""

WEIGHTS = Path("weights") / "mobilenet_v2_1.0_224_folded_f16.npz"
"""Inside the data folder."""

AUGMENTATION = Augmentation(rotate_degrees=15.0, upside_down=True)
"""Mild; objects on the ground are seen from above, so any side may be up."""

_BATCH = 32
_STATISTICS_IMAGES = 512


def default_config(seed: int, train_count: int) -> FitConfig:
    """How the oracle is fine-tuned on `train_count` crops: at least 5 epochs and 200 steps."""
    epochs = max(5, -(-200 * _BATCH // train_count))
    return FitConfig(epochs=epochs, batch_size=_BATCH, learning_rate=1e-3, augmentation=AUGMENTATION, seed=seed)


def as_image_set(crops: FodCrops) -> ImageSet:
    """Crops as the network takes them."""
    return ImageSet(crops.images, crops.labels, MEAN, STD)


def train_oracle(data: Path, crops: FodCrops, config: FitConfig, work: Path, log: RunLog) -> MobileNetV2:
    """Fine-tune on the training split of `crops`; result in `work`/oracle.pt, progress in `work`/oracle.partial.pt.

    Goes on where an earlier run stopped; an oracle that is done already is read and returned. Test accuracies are
    written to the log and the file for the record; nothing is chosen by them.
    """
    path = work / "oracle.pt"
    if path.exists():
        return load_oracle(path, crops.class_names, config)
    train = as_image_set(crops.split("train"))
    model = _initial(data, train, len(crops.class_names), config.seed)
    partial = work / "oracle.partial.pt"
    with log.step("oracle") as figures:
        validation = as_image_set(crops.split("validation"))
        figures |= fit(model, train, config, log=log, validation=validation, checkpoint_path=partial)
        figures |= _accuracies(model, crops)
    contents = {"model": model.state_dict(), "class_names": list(crops.class_names), "resolution": RESOLUTION}
    checkpoint.save(path, contents | {"config": dataclasses.asdict(config), "figures": dict(figures)})
    partial.unlink(missing_ok=True)
    return model


def load_oracle(path: Path, class_names: Sequence[str] | None = None, config: FitConfig | None = None) -> MobileNetV2:
    """The trained oracle in eval mode.

    Raises `StateError` when the file is missing, damaged, or (where `class_names` or `config` are given) of others.
    """
    contents: dict[str, Any] | None = checkpoint.load(path)
    if contents is None:
        raise StateError(f"there is no oracle at {path}", hint="train it first: nnf-build runway")
    if class_names is not None and contents.get("class_names") != list(class_names):
        raise StateError(f"the oracle at {path} was trained on other classes", hint="choose another --work folder")
    if config is not None and contents.get("config") != dataclasses.asdict(config):
        raise StateError(f"the oracle at {path} was trained with other settings", hint="choose another --work folder")
    model = MobileNetV2(len(contents["class_names"]), resolution=contents["resolution"])
    model.load_state_dict(contents["model"])
    return model.eval()


def _initial(data: Path, train: ImageSet, class_count: int, seed: int) -> MobileNetV2:
    """ImageNet weights, BatchNorm statistics of the crops, a new classifier."""
    torch.manual_seed(seed)
    model = MobileNetV2(class_count, resolution=RESOLUTION)
    load_folded(model, data / WEIGHTS)
    chosen = np.random.default_rng(seed).permutation(len(train))[:_STATISTICS_IMAGES]
    recenter_batch_norms(model, (train.inputs(part) for part in np.array_split(chosen, -(-len(chosen) // 64))))
    return model


def _accuracies(model: MobileNetV2, crops: FodCrops) -> dict[str, float]:
    """Accuracy per split, and per condition of the test split; a split or condition without crops is left out."""
    figures: dict[str, float] = {}
    for split in (name for name in SPLITS if name in ("validation", "test")):
        part = crops.split(split)
        figures[f"{split}_count"] = len(part)
        figures[f"{split}_accuracy"] = accuracy(model, as_image_set(part))
    for condition in CONDITIONS:
        part = crops.split("test").condition(condition)
        if len(part):
            figures[f"test_accuracy.{condition}"] = accuracy(model, as_image_set(part))
    return figures
