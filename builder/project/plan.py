"""How long a project is trained: by passes over the data or by the clock, settled once and kept in the work folder."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from builder.data import Augmentation, Source
from builder.distill import LocalConfig, LoopConfig, PathConfig, train_local, train_paths
from builder.elastify import Supernet
from builder.recipes.common import LOCAL_RATE, PATH_RATE, claim_work, default_steps
from builder.runlog import RunLog
from builder.training import Batch, Compute, Ranks
from edge_runtime.errors import StateError, UsageError

__all__ = ["AUGMENTATIONS", "TrainSettings", "kept_training", "new_training", "scaled_rate", "stage_configs"]

AUGMENTATIONS: Mapping[str, Augmentation | None] = {"none": None, "mild": Augmentation()}

LOCAL_SHARE = 0.25
"""Part of the time, and of the passes, that the local stage gets."""

DEFAULT_BATCH, DEFAULT_AUGMENT = 32, "mild"
"""`LOCAL_RATE` and `PATH_RATE` are for this batch size; see `scaled_rate`."""

PROBE_STEPS = 6

_NAMED = ("batch_size", "augment", "labels", "latency")
"""Fields of `TrainSettings` that the user names as they are."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What decides the result of the training beside the project's settings. Raises `UsageError` when built invalid."""

    local_steps: int
    path_steps: int
    asked: str
    """The length in the user's words, e.g. ``30 epochs``."""

    batch_size: int = DEFAULT_BATCH
    """Images of one step, over all processes."""

    augment: str = DEFAULT_AUGMENT
    """One of `AUGMENTATIONS`."""

    labels: bool = True
    """Whether the labels are used, where there are some."""

    latency: str = ""
    """Where the folder's latency.json, over which paths are even, is from: ``here``, or the sha256 of the file that the
    user gave. Empty: paths are even over multiply-accumulates."""

    def __post_init__(self) -> None:
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise UsageError(f"a batch holds 1 image or more, not {self.batch_size!r}")
        if not isinstance(self.labels, bool) or not isinstance(self.latency, str):
            raise UsageError(f"labels are used or not, a latency has a name: not {self.labels!r} and {self.latency!r}")
        if min(self.local_steps, self.path_steps) < 1:
            raise UsageError("a training takes at least one step of each stage", hint="give it more epochs or minutes")
        if self.augment not in AUGMENTATIONS:
            raise UsageError(f"augmentation {self.augment!r} is not one of {', '.join(AUGMENTATIONS)}")

    def over(self, images: int) -> TrainSettings:
        """The same over a set of so many images: a batch holds no more of them, which decides the learning rates."""
        return dataclasses.replace(self, batch_size=min(self.batch_size, images))


def stage_configs(settings: TrainSettings, batches: int, seed: int) -> tuple[LocalConfig, PathConfig]:
    """Both stages over epochs of at most `batches` batches of the asked size."""
    local_rate, path_rate = (scaled_rate(rate, settings.batch_size) for rate in (LOCAL_RATE, PATH_RATE))
    local = LoopConfig(*_epochs(settings.local_steps, batches), learning_rate=local_rate, seed=seed)
    paths = LoopConfig(*_epochs(settings.path_steps, batches), learning_rate=path_rate, seed=seed)
    config = PathConfig(paths) if settings.labels else PathConfig(paths, label_weight=0.0)
    return LocalConfig(local), config


def scaled_rate(rate: float, batch_size: int) -> float:
    """A learning rate of `DEFAULT_BATCH` for another batch size: it grows with the root.

    The square root scaling rule for Adam (Malladi et al. 2022, arXiv 2205.10287).
    """
    return rate * math.sqrt(batch_size / DEFAULT_BATCH)


def _epochs(steps: int, batches: int) -> tuple[int, int]:
    """So many equal epochs that each fits into the data, and steps in each."""
    epochs = -(-steps // batches)
    return epochs, max(steps // epochs, 1)


def kept_training(work: Path, given: Mapping[str, Any], ranks: Ranks) -> TrainSettings | None:
    """The settings that this folder's training was begun with; None where it was not begun.

    Args:
        work: the folder; the first rank reads its train.json for all.
        given: what the user named now (see `new_training`).
        ranks: this process of how many.

    Raises:
        StateError: the training was begun with other settings.
    """
    kept: TrainSettings | None = ranks.share(_read(work / "train.json") if ranks.first else None)
    if kept is not None:
        _compare(work, kept, given)
    return kept


def new_training(
    work: Path,
    given: Mapping[str, Any],
    batches_of: Callable[[int, str], Source],
    supernet: Supernet,
    compute: Compute,
) -> TrainSettings:
    """Settle a training that was not begun yet.

    Args:
        work: the folder; its train.json is written.
        given: what the user named: `epochs` or `minutes`, `batch_size`, `augment`, `labels`, and `latency` as
            `TrainSettings` keeps it.
        batches_of: batch size and name of the augmentation to batch source.
        supernet: on the device of `compute`; a few steps are timed on it where minutes are given, and undone.
        compute: device, precision and ranks.

    Raises:
        UsageError: what is given cannot be meant.
    """
    ranks = compute.ranks
    own = {name: given[name] for name in _NAMED if name in given}
    source = batches_of(own.get("batch_size", DEFAULT_BATCH), own.get("augment", DEFAULT_AUGMENT))
    local_steps, path_steps = ranks.share(_steps(given, source, supernet, compute))
    settings = TrainSettings(local_steps, path_steps, _asked(given) or "default", **own)
    if ranks.first:
        claim_work(work, "train", dataclasses.asdict(settings), file="train.json")
    return settings


def _asked(given: Mapping[str, Any]) -> str:
    return next((f"{given[unit]:g} {unit}" for unit in ("epochs", "minutes") if unit in given), "")


def _compare(work: Path, kept: TrainSettings, given: Mapping[str, Any]) -> None:
    own = dataclasses.asdict(kept)
    differing = [name for name in _NAMED if given.get(name, own[name]) != own[name]]
    if _asked(given) not in ("", kept.asked):
        differing.append(f"length ({kept.asked})")
    if differing:
        raise StateError(
            f"the training in {work} was begun with another {differing[0].replace('_', ' ')}",
            hint="leave the option out to go on with it, or delete what is there of train.json, latency.json, "
            "local.pt, paths.pt and trained.pt",
        )


def _read(path: Path) -> TrainSettings | None:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        body.pop("recipe")
        return TrainSettings(**body)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise StateError(f"{path} cannot be read: {error}", hint="delete it to train again") from error


def _steps(given: Mapping[str, Any], source: Source, supernet: Supernet, compute: Compute) -> tuple[int, int]:
    """Steps of the local and of the path stage."""
    batches = len(source)
    if "epochs" in given:
        return max(1, round(LOCAL_SHARE * given["epochs"] * batches)), given["epochs"] * batches
    if "minutes" not in given:
        return default_steps(batches)
    if not supernet.learns:
        return 1, 1
    local_s, path_s = _step_seconds(source, supernet, compute)
    seconds = 60 * given["minutes"]
    return max(1, int(LOCAL_SHARE * seconds / local_s)), max(1, int((1 - LOCAL_SHARE) * seconds / path_s))


def _step_seconds(source: Source, supernet: Supernet, compute: Compute) -> tuple[float, float]:
    """Seconds of one step of each stage, from a few steps that leave no trace in the supernet."""
    before = {name: value.clone() for name, value in supernet.bodies.state_dict().items()}
    probe = LoopConfig(epochs=PROBE_STEPS, steps_per_epoch=1, learning_rate=LOCAL_RATE)
    found = []
    for train, config in ((train_local, LocalConfig(probe)), (train_paths, PathConfig(probe))):
        timed = _Timed(source)
        train(supernet, config, timed, None, RunLog(stream=io.StringIO()), compute=compute)
        found.append(timed.step_s())
        supernet.bodies.load_state_dict(before)
    return found[0], found[1]


class _Timed:
    """A source that notes when its batches are asked for."""

    def __init__(self, source: Source) -> None:
        self._source, self._asked_at = source, list[float]()

    def __call__(self, epoch: int, first: int) -> Iterator[Batch]:
        for batch in self._source(epoch, first):
            self._asked_at.append(time.perf_counter())
            yield batch

    def step_s(self) -> float:
        """The median time between two batches, the first step left out: it is the slowest."""
        times = self._asked_at[1 - PROBE_STEPS :]
        return statistics.median(later - sooner for sooner, later in pairwise(times))
