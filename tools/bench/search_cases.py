"""The cases of the benches of searches and of objectives: a bundle and labelled test images of its classes."""

# ruff: noqa: TID251 - a bench may use the builder's data sets; only the runtime must not

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from builder.fod import CONDITIONS, load_crops
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.inputs import Frame, fit

__all__ = ["CASES", "Case", "Loaded"]

ROOT = Path(__file__).resolve().parents[2]

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Labelled test images."""

    frames: Frame
    """uint8 [N, H, W, 3], of any size."""

    labels: Labels
    """[N]."""

    conditions: npt.NDArray[np.str_] | None = None
    """Name of the weather, light or disturbance of each, [N]; None where all are of one kind."""


@dataclass(frozen=True, slots=True)
class Case:
    """A bundle, and where its images come from."""

    bundle: Path | None
    """None: the user names it."""

    load: Callable[[Bundle, Path | None], Loaded]

    def images(self, bundle: Bundle, data: Path | None, most: int, seed: int) -> Loaded:
        """At most so many test images at the model's input size, in random order."""
        loaded = self.load(bundle, data)
        order = np.random.default_rng(seed).permutation(len(loaded.labels))[:most]
        chosen = [fit(loaded.frames[index], bundle.manifest.preprocessing) for index in order]
        conditions = None if loaded.conditions is None else loaded.conditions[order]
        return Loaded(np.stack(chosen), loaded.labels[order], conditions)

    def bundle_or(self, named: Path | None) -> Path:
        """The bundle that the user names, else the case's own; `InputError` where there is none."""
        path = named or self.bundle
        if path is None:
            raise InputError("this case has no bundle of its own", hint="name one with --bundle")
        return path


def _runway(bundle: Bundle, data: Path | None) -> Loaded:
    crops = load_crops(_needed(data))
    names = bundle.manifest.task.class_names
    crops = crops if len(names) == len(crops.class_names) else crops.only_classes(crops.common_classes())
    test = crops.split("test")
    return Loaded(test.images, test.labels.astype(np.int64), np.array(CONDITIONS)[test.conditions])


def _tiny(bundle: Bundle, data: Path | None) -> Loaded:
    from elastify_data import load_images  # imports torch, which the other cases do not need

    test = load_images(_needed(data), seed=0).test
    return Loaded(test.images, test.labels)


def _scenes(bundle: Bundle, data: Path | None) -> Loaded:
    from builder.recipes.demo_config import DEMO  # imports torch, which the photographs do not need

    test = DEMO.render("test", workers=len(os.sched_getaffinity(0)))
    return Loaded(test["images"], test["labels"].astype(np.int64), test["conditions"])


def _needed(data: Path | None) -> Path:
    if data is None:
        raise InputError("this case needs labelled images", hint="name their folder with --data")
    return data


CASES: Mapping[str, Case] = {
    "runway": Case(ROOT / "tests" / "data" / "runway.nnf", _runway),
    "tiny": Case(None, _tiny),
    "scenes": Case(ROOT / "edge_runtime" / "assets" / "demo.nnf", _scenes),
}
