"""The part that all recipes and `builder.project` share: from a trained oracle to a packed, verified bundle.

The steps are resumable. Those that take long keep their results in the work folder and are skipped when they are done:
`settings.json` (what the folder is for), `local.pt` and `paths.pt` (training), `prior.json`, then the bundle. The
alternatives in 8 bits are made anew each time, in seconds. `log.jsonl` tells how long each step took and what came out.
A folder that was begun with other settings is refused, never mixed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from builder.data import Augmentation, ImageBatches, ImageSet, Pixels
from builder.distill import LocalConfig, PathConfig, measure_prior, train_local, train_paths
from builder.elastify import ElasticOptions, Supernet, elastify
from builder.export import BundleInfo, check_parity, pack, static_model
from builder.files import write_atomically
from builder.fit import accuracy
from builder.int8 import with_int8
from builder.runlog import RunLog
from builder.training import BatchSource, Compute
from edge_runtime.additive import AdditiveCost
from edge_runtime.backends import runtime_versions
from edge_runtime.bundle import Bundle, Preprocessing, Provenance
from edge_runtime.errors import StateError

__all__ = [
    "CHECK_IMAGES",
    "FIT_IMAGES",
    "LOCAL_RATE",
    "PATH_RATE",
    "Plan",
    "Request",
    "build_bundle",
    "claim_work",
    "default_steps",
    "finished",
    "kept_prior",
    "make_supernet",
    "provenance",
    "spread",
    "train_supernet",
    "weights_digest",
]

FIT_IMAGES = 128
"""Training images, without labels, for the importance of channels and the closed-form initialisation."""

CHECK_IMAGES = 256
"""Validation images, without labels, for the prior and the parity with torch."""

LOCAL_EPOCHS, PATH_EPOCHS = 5, 30
LEAST_LOCAL_STEPS, LEAST_PATH_STEPS = 100, 300
"""Passes over the data, and for few images the least steps: these are what the alternatives need."""

LOCAL_RATE, PATH_RATE = 2e-3, 1.5e-3
"""Learning rates of both stages at 32 images a step."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked a recipe for."""

    work: Path
    """Folder for everything that is kept between runs."""

    out: Path
    """Where the result goes."""

    seed: int = 0
    data: Path | None = None
    """Folder with the user's data, for recipes that need one."""

    command: str = ""
    """The command that makes it again, for the bundle's provenance."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How an oracle is made elastic."""

    options: ElasticOptions
    local: LocalConfig
    paths: PathConfig
    batch_size: int
    augmentation: Augmentation | None
    seed: int


def default_steps(batches: int) -> tuple[int, int]:
    """Steps of the local and of the path stage where nobody named a length.

    Args:
        batches: of one epoch, 1 or more.
    """
    return max(LOCAL_EPOCHS * batches, LEAST_LOCAL_STEPS), max(PATH_EPOCHS * batches, LEAST_PATH_STEPS)


def claim_work(work: Path, recipe: str, settings: Mapping[str, Any], *, file: str = "settings.json") -> None:
    """Mark `work` as the folder of this recipe with these settings; `StateError` where it was begun with others."""
    wanted = json.dumps({"recipe": recipe} | dict(settings), sort_keys=True, indent=1, default=str)
    path = work / file
    try:
        found = path.read_text(encoding="utf-8") if path.exists() else None
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error}", hint="choose another --work folder") from error
    if found is not None and found != wanted:
        raise StateError(
            f"{work} holds a run with other settings", hint="choose another --work folder, or delete that one"
        )
    if found is None:
        write_atomically(path, wanted.encode())


def provenance(recipe: str, *, oracle: str, data: str, request: Request) -> Provenance:
    """Where the bundle comes from, with the versions of what made it."""
    return Provenance(
        oracle=oracle,
        data=data,
        recipe=recipe,
        seed=request.seed,
        versions=dict(runtime_versions()) | {"torch": torch.__version__},
        command=request.command or recipe,
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def preprocessing_of(images: ImageSet) -> Preprocessing:
    """How the runtime makes of a frame what the network was trained on."""
    height, width = images.images.shape[1:3]
    return Preprocessing(height=height, width=width, mean=images.mean, std=images.std)


def build_bundle(
    oracle: nn.Module,
    train: ImageSet,
    validation: ImageSet,
    plan: Plan,
    info: BundleInfo,
    *,
    work: Path,
    out: Path,
    log: RunLog,
) -> Bundle:
    """Elastify `oracle`, train its alternatives, export, verify against torch, and only then put the bundle at `out`.

    `validation` is used without its labels for the prior and the parity check, and with them for figures only. The
    oracle's static export, the yardstick of every latency, is left in `work`/oracle.onnx.

    Raises:
        BuildError: the exported graph is not the trained network, or training diverged.
        StateError: a checkpoint in `work` is damaged, or a place cannot be written.
    """
    supernet = make_supernet(oracle, spread(train, FIT_IMAGES), plan.options, plan.seed, log)
    source = ImageBatches(train, plan.batch_size, plan.seed, augmentation=plan.augmentation)
    train_supernet(supernet, plan.local, plan.paths, source, work, log)
    supernet = finished(supernet, spread(train, FIT_IMAGES), plan.options.storage_ratio, log)
    held_out = spread(validation, CHECK_IMAGES)
    prior = kept_prior(supernet, held_out, work, log)
    with log.step("export") as figures:
        figures["oracle_validation_accuracy"] = accuracy(oracle, validation)
        draft = work / f"{info.name}.nnf"
        own = {key: float(value) for key, value in figures.items() if isinstance(value, (int, float))}
        bundle = pack(supernet, prior, dataclasses.replace(info, figures=dict(info.figures) | own), draft)
        report = check_parity(supernet, oracle, bundle, held_out)
        figures |= dataclasses.asdict(report) | {"digest": bundle.digest, "bytes": draft.stat().st_size}
        write_atomically(work / "oracle.onnx", static_model(oracle, held_out[:2]))
        write_atomically(out, draft.read_bytes())
    return Bundle.read(out)


def make_supernet(oracle: nn.Module, images: torch.Tensor, options: ElasticOptions, seed: int, log: RunLog) -> Supernet:
    """The untrained supernet of `oracle`, the same for the same images and seed.

    Args:
        oracle: the developer's network; its layout in memory is changed, its values are not.
        images: a few dozen to a few hundred images as the network takes them.
        options: what each unit is offered.
        seed: of the closed-form initialisation.
        log: where its figures are written.

    Raises:
        UsageError: the network cannot be traced, or has nothing to make elastic.
    """
    # The layout decides the last bits of every sum: the same whether the oracle was just trained or read from its file.
    Compute().place_module(oracle)
    with log.step("elastify") as figures:
        torch.manual_seed(seed)
        supernet = elastify(oracle, images, options, seed=seed)
        Compute().place_module(supernet)
        merged = sum(span > 1 for group in supernet.space.groups for span in group.spans)
        figures |= {"units": len(supernet.units), "merged": merged, "subnets": float(supernet.space.size())}
        figures["alternatives"] = sum(group.size - 1 for group in supernet.space.groups)
    return supernet


def train_supernet(
    supernet: Supernet,
    local: LocalConfig,
    paths: PathConfig,
    source: BatchSource,
    work: Path,
    log: RunLog,
    *,
    compute: Compute | None = None,
    latency: AdditiveCost | None = None,
) -> None:
    """Both stages of training, each from its checkpoint in `work`; the supernet ends on the CPU, in eval mode.

    Raises:
        StateError: a checkpoint is damaged or of other settings.
        BuildError: training diverged.
    """
    compute = compute or Compute()
    compute.place_module(supernet)
    with log.step("local") as figures:
        figures["error"] = train_local(supernet, local, source, work / "local.pt", log, compute=compute)
    with log.step("paths") as figures:
        saved = work / "paths.pt"
        figures["loss"] = train_paths(supernet, paths, source, saved, log, compute=compute, latency=latency)
    supernet.to("cpu")


def finished(supernet: Supernet, images: torch.Tensor, storage_ratio: float, log: RunLog) -> Supernet:
    """The trained supernet with alternatives in 8 bits, see `builder.int8.with_int8`.

    Args:
        supernet: trained, on the CPU.
        images: a few dozen to a few hundred images as the network takes them, without labels.
        storage_ratio: most bytes of the result as a multiple of the oracle's.
        log: where its figures are written.
    """
    with log.step("int8") as figures:
        result = with_int8(supernet, images, storage_ratio=storage_ratio)
        figures |= {"subnets": float(result.space.size()), "storage_ratio": round(result.report().storage_ratio, 3)}
    return result


def kept_prior(
    supernet: Supernet,
    images: torch.Tensor,
    work: Path,
    log: RunLog,
    *,
    compute: Compute | None = None,
    file: str = "prior.json",
) -> tuple[tuple[float, ...], ...]:
    """The measured prior; kept together with the digest of the weights that it was measured on.

    The supernet is on the CPU before and after; it is measured on the device of `compute`.
    """
    compute = compute or Compute()
    path, digest = work / file, weights_digest(supernet.bodies.state_dict())
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: it is measured again
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["weights"] == digest:
            return tuple(tuple(float(cost) for cost in row) for row in kept["prior"])
    with log.step("prior"):
        compute.place_module(supernet)
        prior = measure_prior(supernet, compute.place((images, None))[0])
        supernet.to("cpu")
    write_atomically(path, json.dumps({"weights": digest, "prior": prior}).encode())
    return prior


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Of all weights, statistics and codings of a state dict."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def spread(images: Pixels, count: int, *, shifted: bool = False) -> torch.Tensor:
    """Up to `count` images evenly over the set, as the network takes them; `shifted`: others, if there are enough."""
    step = max(len(images) // count, 1)
    start = step // 2 if shifted else 0
    return images.inputs(slice(start, step * count, step))
