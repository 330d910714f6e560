"""`nnf-build runway`: runway debris on real photographs, with MobileNetV2 from ImageNet as the oracle's beginning."""

from __future__ import annotations

import dataclasses

from builder.distill import LocalConfig, LoopConfig, PathConfig
from builder.elastify import ElasticOptions
from builder.export import BundleInfo
from builder.fod import FodCrops, load_crops
from builder.recipes.common import (
    LOCAL_RATE,
    PATH_RATE,
    Plan,
    Request,
    build_bundle,
    claim_work,
    default_steps,
    preprocessing_of,
    provenance,
)
from builder.recipes.runway_oracle import AUGMENTATION, RESOLUTION, as_image_set, default_config, train_oracle
from builder.runlog import RunLog
from edge_runtime.bundle import Bundle
from edge_runtime.errors import UsageError

__all__ = ["build", "default_plan", "select_crops"]

BATCH = 32


def default_plan(steps_per_epoch: int, seed: int) -> Plan:
    """How the runway network is made elastic; with the oracle it fits into 45 minutes on two CPU cores."""
    local_epochs, path_epochs = (-(-steps // steps_per_epoch) for steps in default_steps(steps_per_epoch))
    return Plan(
        options=ElasticOptions(),
        local=LocalConfig(LoopConfig(local_epochs, steps_per_epoch, learning_rate=LOCAL_RATE, seed=seed)),
        paths=PathConfig(LoopConfig(path_epochs, steps_per_epoch, learning_rate=PATH_RATE, seed=seed)),
        batch_size=BATCH,
        augmentation=AUGMENTATION,
        seed=seed,
    )


def select_crops(crops: FodCrops, *, dry_bright_only: bool) -> FodCrops:
    """All crops, or the dry and bright ones of the classes that exist in all four conditions."""
    if not dry_bright_only:
        return crops
    return crops.only_classes(crops.common_classes()).condition("dry/bright")


def build(request: Request, log: RunLog, *, dry_bright_only: bool = False) -> Bundle:
    """Run the recipe, from the photographs to the bundle at `request.out`; goes on where an earlier run stopped.

    Raises:
        UsageError: no data folder is named.
        InputError: the data folder lacks the photographs or the weights.
        StateError: the work folder is of other settings, damaged, or cannot be written.
        BuildError: the exported graph is not the trained network.
    """
    if request.data is None:
        raise UsageError("the runway recipe needs photographs", hint="name their folder: nnf-build runway --data DIR")
    with log.step("data") as figures:
        crops = select_crops(load_crops(request.data, cache=request.work), dry_bright_only=dry_bright_only)
        train, validation = (as_image_set(crops.split(name)) for name in ("train", "validation"))
        figures |= {"train": len(train), "validation": len(validation), "classes": len(crops.class_names)}
    config = default_config(request.seed, len(train))
    plan = default_plan(max(1, len(train) // BATCH), request.seed)
    settings = {"oracle": dataclasses.asdict(config), "plan": dataclasses.asdict(plan)}
    claim_work(request.work, "runway", settings | {"dry_bright_only": dry_bright_only})
    oracle = train_oracle(request.data, crops, config, request.work, log)
    info = BundleInfo(
        name="nnf-runway-dry" if dry_bright_only else "nnf-runway",
        preprocessing=preprocessing_of(train),
        class_names=crops.class_names,
        provenance=provenance(
            "nnf-build runway",
            oracle=f"MobileNetV2 1.0 at {RESOLUTION} px, ImageNet weights (Apache-2.0, dequantised), fine-tuned",
            data="FOD-A crops (MIT, arXiv 2110.03072)" + (", dry and bright only" if dry_bright_only else ""),
            request=request,
        ),
        figures={},
    )
    return build_bundle(oracle, train, validation, plan, info, work=request.work, out=request.out, log=log)
