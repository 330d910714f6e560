"""The same time for every arm, on a machine whose speed changes while they train.

A step's time is counted in reference steps: forward and backward of the oracle on one batch, made between the steps of
an arm while it is probed. What a reference step takes is measured once, when the bench begins; so all arms get the
minutes of the same machine, whatever else ran during their probes, and a run that was stopped has lost nothing. What an
arm does before its first step is scaled in the same way.
"""

# ruff: noqa: TID251 - a bench may use torch and the builder; only the runtime must not

from __future__ import annotations

import copy
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from builder.files import write_atomically
from builder.runlog import RunLog
from builder.training import Batch, BatchSource, Compute, LoopConfig
from edge_runtime.errors import ResourceError, StateError
from edge_runtime.measure import machine_lock

__all__ = ["Followed", "Reference", "Stage", "alone", "pace", "settled_steps", "spending", "spent_seconds"]

PROBES_PER_MINUTE, LEAST_PROBES = 6, 4
"""Steps by which a stage is timed: random paths differ, so the more minutes depend on it, the more of them."""

REFERENCE_RUNS, SCALING_RUNS = 20, 5
POLL_S, FOLLOW_S = 2.0, 10.0


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of an arm's training."""

    name: str
    share: float
    """Of the arm's time, in (0, 1]."""

    train: Callable[[int, BatchSource, Path | None, RunLog], float]
    """Steps, batches, checkpoint and log to the loss at the end."""


class Reference:
    """Forward and backward of the oracle on one batch of random images; a call gives its seconds.

    Args:
        oracle: copied.
        shape: of the batch.
        kept: file that holds what a step takes, for all arms of a work folder.
        compute: where the arms train; CPU and float32 where it is not given.
    """

    def __init__(self, oracle: nn.Module, shape: Sequence[int], kept: Path, compute: Compute | None = None) -> None:
        self._compute = compute or Compute()
        self._net = copy.deepcopy(oracle).requires_grad_(True).train()
        self._compute.place_module(self._net)
        images = torch.zeros(*shape).normal_(generator=torch.Generator().manual_seed(0))
        self._batch, _ = self._compute.place((images, None))
        self._kept = kept

    @property
    def about(self) -> dict[str, str]:
        """The device on which arms train, and what decides their last bits."""
        compute = self._compute
        name = torch.cuda.get_device_name(compute.device) if compute.kind == "cuda" else compute.device
        return {"device": name, "precision": compute.settled() or compute.precision, "torch": str(torch.__version__)}

    def check(self, kept: dict[str, Any], path: Path) -> None:
        """`StateError` where what `path` holds was timed on another device or in another precision."""
        then, now = ({key: about.get(key) for key in ("device", "precision")} for about in (kept, self.about))
        if then != now:
            raise StateError(f"{path} was made on {then}, not on {now}", hint="go on there, or choose another --work")

    def __call__(self) -> float:
        """Make one step, without an optimiser."""
        self.finish()
        began = time.perf_counter()
        with self._compute.autocast(self._compute.settled() or "fp32"):
            loss = self._net(self._batch).logsumexp(1).mean()
        loss.backward()
        self.finish()
        return time.perf_counter() - began

    def finish(self) -> None:
        """Wait for what a GPU still has to do."""
        if self._compute.kind == "cuda":
            torch.cuda.synchronize(self._compute.device)

    def unit_s(self) -> float:
        """Seconds of a step, as they were when this was first asked for; waits for the machine's lock then."""
        if self._kept.exists():
            kept: dict[str, Any] = json.loads(self._kept.read_text(encoding="utf-8"))
            self.check(kept, self._kept)
            return float(kept["reference_step_s"])
        with alone("tools/bench/elastify.py: the reference step"):
            seconds = statistics.median([self() for _ in range(REFERENCE_RUNS)][2:])
        write_atomically(self._kept, json.dumps({"reference_step_s": seconds} | self.about).encode())
        return seconds

    def as_when_measured(self, seconds: float) -> float:
        """Seconds that this process would have spent when `unit_s` was measured, by a few steps made now.

        Of work on the CPU, so unchanged where the steps are a GPU's.

        Raises:
            StateError: `unit_s` was measured on another device or in another precision.
        """
        unit_s = self.unit_s()
        if self._compute.kind == "cuda":
            return seconds
        return seconds * unit_s / statistics.median([self() for _ in range(SCALING_RUNS)])


class _Probed:
    """A source that makes a reference step before each batch, and notes what a step took in units of those."""

    def __init__(self, source: BatchSource, reference: Reference) -> None:
        self._source, self._reference = source, reference
        self.ratios: list[float] = []

    def __call__(self, epoch: int, first: int) -> Iterator[Batch]:
        began = time.perf_counter()
        for batch in self._source(epoch, first):
            self._reference.finish()
            fetched_s = time.perf_counter() - began
            unit_s = self._reference()
            began = time.perf_counter()
            yield batch
            self._reference.finish()
            self.ratios.append((fetched_s + time.perf_counter() - began) / unit_s)
            began = time.perf_counter()


def settled_steps(
    path: Path,
    stages: Sequence[Stage],
    trained: nn.Module,
    source: BatchSource,
    reference: Reference,
    *,
    minutes: float,
    used_s: float,
) -> dict[str, int]:
    """Steps of each stage that fill the arm's time: read from `path`, or found by a few steps that leave no trace.

    Args:
        path: where the decision is kept.
        stages: in order.
        trained: what the stages change.
        source: batches.
        reference: the unit of time.
        minutes: of the whole arm.
        used_s: of these, seconds that the arm's beginning took already.

    Raises:
        StateError: the folder was begun with other minutes, or on another device.
    """
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept["minutes"] != minutes:
            raise StateError(
                f"{path.parent} was begun with {kept['minutes']:g} minutes", hint="choose another --work folder"
            )
        reference.check(kept, path)
        return dict(kept["steps"])
    unit_s = reference.unit_s()
    probes = max(LEAST_PROBES, round(PROBES_PER_MINUTE * minutes))
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    ratios: dict[str, float] = {}
    with alone(f"tools/bench/elastify.py: the pace of {path.parent.name}"):
        for stage in stages:
            probed = _Probed(source, reference)
            stage.train(probes, probed, None, RunLog(stream=io.StringIO()))
            ratios[stage.name] = statistics.median(probed.ratios[2 - probes :])
            trained.load_state_dict(before)
    seconds = max(0.0, 60 * minutes - used_s)
    steps = {s.name: max(1, int(s.share * seconds / (unit_s * ratios[s.name]))) for s in stages}
    content = {"minutes": minutes, "used_s": used_s, "steps": steps, "reference_steps_per_step": ratios}
    content |= reference.about
    write_atomically(path, json.dumps(content, indent=1).encode())
    return steps


def pace(steps: int, batches: int, *, learning_rate: float, seed: int, ema_decay: float | None) -> LoopConfig:
    """So many steps, in equal epochs that each fit into the data."""
    epochs = -(-steps // batches)
    return LoopConfig(epochs, max(steps // epochs, 1), learning_rate=learning_rate, seed=seed, ema_decay=ema_decay)


@contextmanager
def alone(what: str) -> Iterator[None]:
    """Hold the machine's lock while something is timed; waits as long as another process holds it."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(machine_lock(what))
            except ResourceError:
                time.sleep(POLL_S)
            else:
                break
        yield


@contextmanager
def spending(path: Path) -> Iterator[None]:
    """Add the seconds of the block to those in `path`, also where it is left by an interrupt."""
    before = spent_seconds(path)
    began = time.monotonic()
    try:
        yield
    finally:
        write_atomically(path, json.dumps({"seconds": round(before + time.monotonic() - began, 1)}).encode())


def spent_seconds(path: Path) -> float:
    """What `spending` has added up so far."""
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.exists() else 0.0


class Followed:
    """A source that writes to a file which step is taken, a few times a minute.

    Args:
        source: batches.
        about: what else the file says, e.g. the arm and its stage.
        steps: of the stage.
        batches: of a pass over the data.
        path: the file.
    """

    def __init__(self, source: BatchSource, about: dict[str, Any], steps: int, batches: int, path: Path) -> None:
        self._source, self._about, self._steps, self._path = source, about, steps, path
        self._per_epoch = pace(steps, batches, learning_rate=1.0, seed=0, ema_decay=None).steps_per_epoch
        self._written_at = 0.0

    def __call__(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on."""
        for number, batch in enumerate(self._source(epoch, first), first):
            if time.monotonic() - self._written_at >= FOLLOW_S:
                self._written_at = time.monotonic()
                self._write(epoch * self._per_epoch + number)
            yield batch

    def _write(self, step: int) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        content = self._about | {"step": step, "steps": self._steps, "time": now}
        write_atomically(self._path, json.dumps(content).encode())
