"""`nnf-build demo`: the model and the images that nnf-edge ships, from nothing but the renderer."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from builder import checkpoint
from builder.demo_net import MEAN, ORACLE, STD, DemoNet
from builder.distill import LocalConfig, LoopConfig, PathConfig
from builder.elastify import ElasticOptions
from builder.export import BundleInfo
from builder.files import read_npz, write_atomically
from builder.fit import FitConfig, accuracy, fit
from builder.images import Augmentation, ImageSet
from builder.recipes.common import Plan, Request, build_bundle, claim_work, preprocessing_of, provenance
from builder.runlog import RunLog
from builder.scenes import CLASSES, render_set
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError, StateError

__all__ = ["Sizes", "build"]

_SIDE = 64
_SETS = ("train", "validation", "shipped")
"""Rendered from seeds of their own, which share no scene."""

_KEYS = ("images", "labels", "conditions")
_JPEG_QUALITY = 95
_AUGMENTATION = Augmentation(rotate_degrees=0.0, zoom=0.0, shift=0.06, upside_down=True, brightness=0.15)
"""Scenes have every rotation and scale already; these are the changes that cost no sharpness."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """How much is rendered and how long is trained; the defaults take about 15 minutes on two cores."""

    train: int = 8000
    """Scenes for training."""

    validation: int = 1000
    """Scenes of the prior, the parity check and the figures."""

    shipped: int = 400
    """Scenes that go into the package."""

    oracle_epochs: int = 16
    local_epochs: int = 2
    path_epochs: int = 6
    batch: int = 64


def build(request: Request, log: RunLog, *, sizes: Sizes | None = None) -> Bundle:
    """Run the recipe: the bundle at `request.out`, the shipped images beside it as demo_images.npz.

    Raises:
        StateError: the work folder is of other settings, damaged, or cannot be written.
        BuildError: the exported graph is not the trained network.
    """
    sizes = sizes or Sizes()
    config = FitConfig(
        epochs=sizes.oracle_epochs,
        batch_size=sizes.batch,
        learning_rate=3e-3,
        label_smoothing=0.05,
        augmentation=_AUGMENTATION,
        seed=request.seed,
    )
    plan = _plan(sizes, request.seed)
    settings = {"sizes": sizes, "fit": config, "plan": plan, "network": ORACLE}
    claim_work(request.work, "demo", {name: dataclasses.asdict(value) for name, value in settings.items()})
    arrays = _scenes(request, sizes, log)
    train, validation, shipped = (ImageSet(arrays[n]["images"], arrays[n]["labels"], MEAN, STD) for n in _SETS)
    oracle = _oracle(train, validation, config, request.work, log)
    with log.step("shipped") as figures:
        figures["accuracy"] = shipped_accuracy = accuracy(oracle, shipped)
        write_atomically(request.out.with_name("demo_images.npz"), _as_jpeg(arrays["shipped"]))
    info = BundleInfo(
        name="nnf-demo",
        preprocessing=preprocessing_of(train),
        class_names=CLASSES,
        provenance=provenance(
            "nnf-build demo",
            oracle=f"DemoNet, {len(ORACLE.stages)} stages of inverted residuals at {_SIDE} px",
            data=f"{sizes.train} scenes of builder.scenes (Apache-2.0, part of this project)",
            request=request,
        ),
        figures={"oracle_shipped_accuracy": shipped_accuracy},
    )
    return build_bundle(oracle, train, validation, plan, info, work=request.work, out=request.out, log=log)


def _plan(sizes: Sizes, seed: int) -> Plan:
    steps = max(sizes.train // sizes.batch, 1)
    return Plan(
        options=ElasticOptions(),
        local=LocalConfig(LoopConfig(epochs=sizes.local_epochs, steps_per_epoch=steps, learning_rate=2e-3)),
        paths=PathConfig(LoopConfig(epochs=sizes.path_epochs, steps_per_epoch=steps, learning_rate=1.5e-3)),
        batch_size=sizes.batch,
        augmentation=_AUGMENTATION,
        seed=seed,
    )


def _scenes(request: Request, sizes: Sizes, log: RunLog) -> dict[str, dict[str, npt.NDArray[np.generic]]]:
    """The three rendered sets by name; each is kept in the work folder."""
    result = {}
    for number, name in enumerate(_SETS):
        path, count = request.work / f"scenes_{name}.npz", getattr(sizes, name)
        if (kept := _kept(path, count)) is None:
            with log.step(f"render.{name}") as figures:
                figures["count"] = count
                log.say(f"rendering {count} scenes ({name})")
                workers = len(os.sched_getaffinity(0))
                kept = render_set(request.seed * len(_SETS) + number, count, size=_SIDE, workers=workers)
            buffer = io.BytesIO()
            np.savez(buffer, **{key: kept[key] for key in _KEYS})
            write_atomically(path, buffer.getvalue())
        result[name] = kept
    return result


def _kept(path: Path, count: int) -> dict[str, npt.NDArray[np.generic]] | None:
    """The set that an earlier run rendered; None where there is none or it is damaged (it is rendered again then)."""
    try:
        arrays = read_npz(path, _KEYS, hint="")
    except InputError:
        return None
    return arrays if len(arrays["labels"]) == count else None


def _oracle(train: ImageSet, validation: ImageSet, config: FitConfig, work: Path, log: RunLog) -> DemoNet:
    """The trained network; read from `work`/oracle.pt where an earlier run trained it."""
    path, partial = work / "oracle.pt", work / "oracle.partial.pt"
    torch.manual_seed(config.seed)
    model = DemoNet(len(CLASSES))
    if (kept := checkpoint.load(path)) is not None:
        try:
            model.load_state_dict(kept["model"])
        except (KeyError, RuntimeError) as error:
            raise StateError(f"{path} is of another network", hint="delete the file to train again") from error
        return model.eval()
    with log.step("oracle") as figures:
        figures |= fit(model, train, config, log=log, validation=validation, checkpoint_path=partial)
        figures["validation_accuracy"] = accuracy(model, validation)
    checkpoint.save(path, {"model": model.state_dict()})
    partial.unlink(missing_ok=True)
    return model


def _as_jpeg(arrays: dict[str, npt.NDArray[np.generic]]) -> bytes:
    """The .npz that `nnf-edge` reads: JPEG files end to end with their labels, conditions and class names."""
    files = []
    for image in arrays["images"]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        files.append(buffer.getvalue())
    archive = io.BytesIO()
    np.savez(
        archive,
        jpeg=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)], dtype=np.int64),
        labels=arrays["labels"],
        conditions=arrays["conditions"],
        class_names=np.array(CLASSES),
    )
    return archive.getvalue()
