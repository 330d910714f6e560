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
from builder.data import ImageSet
from builder.demo_net import ORACLE, DemoNet
from builder.distill import LocalConfig, LoopConfig, PathConfig
from builder.elastify import ElasticOptions
from builder.export import BundleInfo
from builder.files import read_npz, write_atomically
from builder.fit import FitConfig, accuracy, fit
from builder.recipes.common import Plan, Request, build_bundle, claim_work, preprocessing_of, provenance
from builder.recipes.demo_config import DEMO, DemoSettings, as_image_set, fit_config
from builder.runlog import RunLog
from builder.scenes import CLASSES
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError, StateError

__all__ = ["Stages", "build"]

_PARTS = ("train", "validation", "test")
_KEYS = ("images", "labels", "conditions")
_JPEG_QUALITY = 95


@dataclasses.dataclass(frozen=True, slots=True)
class Stages:
    """How long the alternatives are trained, and how much is shipped."""

    local_epochs: int = 3
    path_epochs: int = 12
    batch_size: int = 64
    """Larger than the oracle's: the many small operations of the alternatives cost time by the batch, not the image."""
    shipped: int = 400
    """Scenes that go into the package: the first of the test set."""


def build(request: Request, log: RunLog, *, settings: DemoSettings = DEMO, stages: Stages | None = None) -> Bundle:
    """Run the recipe: the bundle at `request.out`, the shipped images beside it as demo_images.npz.

    Raises:
        StateError: the work folder is of other settings, damaged, or cannot be written.
        BuildError: the exported graph is not the trained network.
    """
    stages = stages or Stages()
    config = fit_config(settings, request.seed)
    plan = _plan(settings, stages, config)
    claimed = {"settings": settings, "stages": stages, "fit": config, "plan": plan, "network": ORACLE}
    claim_work(request.work, "demo", {name: dataclasses.asdict(value) for name, value in claimed.items()})
    rendered = {part: _scenes(request.work, part, settings, log) for part in _PARTS}
    train, validation, test = (as_image_set(rendered[part]) for part in _PARTS)
    oracle = _oracle(train, validation, config, request.work, log)
    with log.step("test") as figures:
        figures["accuracy"] = test_accuracy = accuracy(oracle, test)
    write_atomically(request.out.with_name("demo_images.npz"), _as_jpeg(rendered["test"], stages.shipped))
    info = BundleInfo(
        name="nnf-demo",
        preprocessing=preprocessing_of(train),
        class_names=CLASSES,
        provenance=provenance(
            "nnf-build demo",
            oracle=f"DemoNet, {len(ORACLE.stages)} stages of inverted residuals at {settings.size} px",
            data=f"{settings.train_images} scenes of builder.scenes (Apache-2.0, part of this project)",
            request=request,
        ),
        figures={"oracle_test_accuracy": test_accuracy},
    )
    return build_bundle(oracle, train, validation, plan, info, work=request.work, out=request.out, log=log)


def _plan(settings: DemoSettings, stages: Stages, config: FitConfig) -> Plan:
    steps = max(settings.train_images // stages.batch_size, 1)
    return Plan(
        options=ElasticOptions(),
        local=LocalConfig(LoopConfig(stages.local_epochs, steps, learning_rate=2e-3, seed=config.seed)),
        paths=PathConfig(LoopConfig(stages.path_epochs, steps, learning_rate=1.5e-3, seed=config.seed)),
        batch_size=stages.batch_size,
        augmentation=config.augmentation,
        seed=config.seed,
    )


def _scenes(work: Path, part: str, settings: DemoSettings, log: RunLog) -> dict[str, npt.NDArray[np.generic]]:
    """One rendered set; kept in the work folder."""
    path = work / f"scenes_{part}.npz"
    if (kept := _kept(path)) is not None:
        return kept
    log.say(f"rendering the {part} scenes")
    with log.step(f"render.{part}") as figures:
        rendered = settings.render(part, workers=len(os.sched_getaffinity(0)))
        figures["count"] = len(rendered["labels"])
    buffer = io.BytesIO()
    np.savez(buffer, **{key: rendered[key] for key in _KEYS})
    write_atomically(path, buffer.getvalue())
    return rendered


def _kept(path: Path) -> dict[str, npt.NDArray[np.generic]] | None:
    """The set that an earlier run rendered; None where there is none or it is damaged (it is rendered again then)."""
    try:
        return read_npz(path, _KEYS, hint="")
    except InputError:
        return None


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


def _as_jpeg(arrays: dict[str, npt.NDArray[np.generic]], count: int) -> bytes:
    """The first `count` scenes as the .npz that `nnf-edge` reads: JPEG files end to end, labels, conditions, names."""
    files = []
    for image in arrays["images"][:count]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        files.append(buffer.getvalue())
    archive = io.BytesIO()
    np.savez(
        archive,
        jpeg=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)], dtype=np.int64),
        labels=arrays["labels"][:count],
        conditions=arrays["conditions"][:count],
        class_names=np.array(CLASSES),
    )
    return archive.getvalue()
