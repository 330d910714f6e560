"""What the demo is trained on and how: the figures that the recipe, the tests and the benches share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from builder.data import Augmentation, ImageSet
from builder.demo_net import MEAN, STD
from builder.fit import FitConfig
from builder.scenes import CONDITIONS, render_set
from edge_runtime.errors import UsageError

__all__ = ["DEMO", "DemoSettings", "as_image_set", "fit_config"]


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Sets of rendered scenes and the training of the demo's oracle. Raises `UsageError` when built invalid.

    Sets of different seeds share no scene. All are rendered over `conditions` in turn, at `size` pixels.
    """

    train_seed: int = 1001
    train_images: int = 12_000
    validation_seed: int = 1501
    """Held out; for choosing, never for a figure that is reported."""
    validation_images: int = 1_000
    test_seed: int = 2002
    """Held out; for the figures that are reported, and the seed of the images that are shipped."""
    test_images: int = 2_000
    conditions: tuple[str, ...] = CONDITIONS
    size: int = 64
    """Side of the images in pixels."""
    epochs: int = 12
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.05

    def __post_init__(self) -> None:
        if len({self.train_seed, self.validation_seed, self.test_seed}) != 3:
            raise UsageError(
                "two of the demo's sets have the same seed", hint="held-out scenes need seeds of their own"
            )
        if min(self.train_images, self.validation_images, self.test_images) < 1:
            raise UsageError("one of the demo's sets is empty", hint="give at least one image to each")

    def render(self, part: str, workers: int = 1) -> dict[str, npt.NDArray[np.generic]]:
        """Renders the set named "train", "validation" or "test"; as `builder.scenes.render_set`."""
        sets = {
            "train": (self.train_seed, self.train_images),
            "validation": (self.validation_seed, self.validation_images),
            "test": (self.test_seed, self.test_images),
        }
        if part not in sets:
            raise UsageError(f"the demo has no set {part!r}", hint=f"one of {', '.join(sets)}")
        seed, count = sets[part]
        return render_set(seed, count, self.conditions, self.size, workers)


DEMO = DemoSettings()
"""The settings of the shipped bundle."""


def fit_config(settings: DemoSettings, seed: int) -> FitConfig:
    """Training of the oracle: AdamW, one cosine, label smoothing; mirrored images of varied brightness.

    The renderer draws every pose, so augmentation only keeps the network from learning single images by heart; turns
    and shifts would blur the images, and the test images are not blurred.
    """
    augmentation = Augmentation(rotate_degrees=0.0, zoom=0.0, shift=0.0, flip=True, upside_down=True, brightness=0.15)
    return FitConfig(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        label_smoothing=settings.label_smoothing,
        augmentation=augmentation,
        seed=seed,
    )


def as_image_set(rendered: Mapping[str, npt.NDArray[np.generic]]) -> ImageSet:
    """Rendered scenes as `DemoNet` takes them."""
    return ImageSet(rendered["images"].astype(np.uint8), rendered["labels"].astype(np.int64), MEAN, STD)
