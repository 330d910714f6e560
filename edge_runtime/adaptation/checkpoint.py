"""A search that has not ended, as it survives a restart: what subnets were worth on each image. Never a pixel.

The evolution is deterministic given its seed and the scores, so a search is taken up by running it again with the
values that it had: what was evaluated costs nothing, and it arrives where it was. What the clock decided is kept too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.additive import AdditiveCost
from edge_runtime.checks import fields, finite, positive, whole, word
from edge_runtime.errors import GateError, StateError, UsageError
from edge_runtime.gates import Gates, GateSpace
from edge_runtime.inputs import Frame
from edge_runtime.state import StateDir

__all__ = ["Checkpoint", "Checkpoints", "Course", "cost_key", "search_key"]

FORMAT = 2
"""Of what a checkpoint means: of its fields, and of how a value comes from an image. An older one is not taken up."""

MAX_VALUES = 200_000
"""Values in one file at most, about 4 MB; beyond that only those of the first images are kept."""


@dataclass(frozen=True, slots=True)
class Course:
    """What a search began with, and what the clock decided in it. Raises `UsageError` when built invalid."""

    seeds: tuple[Gates, ...]
    """What the evolution was given to begin with: the active subnet first."""

    table: str
    """Digest of the predicted latencies (`cost_key`); by others the search goes another way."""

    seconds: float = 0.0
    """Busy time so far, seconds."""

    image_seconds: float | None = None
    """What one image of the full subnet takes, seconds; None before that was measured."""

    proposals: int | None = None
    """Proposals of the evolution that were evaluated until it ended; None before its end."""

    def __post_init__(self) -> None:
        word("table", self.table)
        if finite("seconds", self.seconds) < 0:
            raise UsageError(f"seconds {self.seconds} is below 0")
        if self.image_seconds is not None:
            positive("image_seconds", self.image_seconds)
        if self.proposals is not None:
            whole("proposals", self.proposals)

    def to_json(self) -> dict[str, Any]:
        """The course as JSON types."""
        return {
            "seeds": [gates.to_json() for gates in self.seeds],
            "table": self.table,
            "seconds": self.seconds,
            "image_seconds": self.image_seconds,
            "proposals": self.proposals,
        }

    @classmethod
    def from_json(cls, space: GateSpace, body: object) -> Course:
        """Inverse of `to_json`. Raises `UsageError` or `GateError`, never another exception, whatever the body."""
        values = fields("course", body, required=cls.__slots__)
        if not isinstance(values["seeds"], list):
            raise UsageError("seeds is not a list")
        return cls(tuple(space.from_json(gates) for gates in values.pop("seeds")), **values)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A search in the middle."""

    key: str
    """Digest of everything that decides the values (`search_key`)."""

    course: Course
    """How far it was."""

    values: Mapping[Gates, tuple[float, ...]]
    """Value in [0, 1] of each evaluated subnet on the first images, in the order of the search."""

    def best(self, count: int) -> tuple[Gates, ...]:
        """At most `count` subnets to try first on other images, the full one left out.

        Seeds that were not reached come first, then what was evaluated: by images, then by the mean of their values.
        """

        def rank(gates: Gates) -> tuple[float, float]:
            values = self.values[gates]
            return -len(values), -sum(values) / max(1, len(values))

        waiting = [gates for gates in self.course.seeds if gates not in self.values]
        listed = dict.fromkeys([*waiting, *sorted(self.values, key=rank)])
        return tuple(gates for gates in listed if not gates.is_default)[:count]

    def to_json(self) -> dict[str, Any]:
        """The checkpoint as JSON types, `MAX_VALUES` at most."""
        share = MAX_VALUES // max(1, len(self.values))
        return {
            "key": self.key,
            "course": self.course.to_json(),
            "values": [[gates.to_json(), list(values[:share])] for gates, values in self.values.items()],
        }

    @classmethod
    def from_json(cls, space: GateSpace, body: object) -> Checkpoint:
        """Inverse of `to_json`. Raises `UsageError` or `GateError`, never another exception, whatever the body."""
        found = fields("checkpoint", body, required=cls.__slots__)
        if not isinstance(found["values"], list):
            raise UsageError("values is not a list")
        return cls(
            word("key", found["key"]),
            Course.from_json(space, found["course"]),
            dict(_subnet(space, item) for item in found["values"]),
        )


class Checkpoints:
    """The one file in which the running search of one bundle on one machine is kept.

    Of two processes that search with the same state directory the file is the last writer's: each reads it once, before
    it begins, and takes up only what its own images and settings gave.

    Args:
        state: The state directory.
        name: File name, which stands for bundle, machine and versions. Example: that of the memory, with a prefix.
    """

    def __init__(self, state: StateDir, name: str) -> None:
        self.note = ""
        """Why the running search is not kept; empty where it is."""
        self._state, self._name = state, name

    def read(self, space: GateSpace) -> Checkpoint | None:
        """What was written last; None where there is nothing, or nothing that is ours and fits this gate space."""
        try:
            body = self._state.read_json(self._name)
            values = fields("search", body, required=("format", "of", "checkpoint"))
            if (values["format"], values["of"]) != (FORMAT, self._name):
                return None
            return Checkpoint.from_json(space, values["checkpoint"])
        except (UsageError, GateError):
            return None

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the file, atomically; a disk that refuses costs the checkpoint, never the search."""
        self.note = ""
        if not self._state.enabled:
            return
        try:
            self._state.write_json(self._name, {"format": FORMAT, "of": self._name, "checkpoint": checkpoint.to_json()})
        except StateError as error:
            self.note = str(error)

    def remove(self) -> None:
        """The search has ended. A file that cannot be removed is harmless: the next search knows whether it fits."""
        self.note = ""
        self._state.remove(self._name)


def search_key(images: Frame, labels: npt.NDArray[np.int64] | None, plan: AdaptPlan, batch_size: int) -> str:
    """Digest of what decides which subnets a search evaluates and what each is worth on each image.

    Args:
        images: uint8 [n, H, W, 3] in the order in which they were given.
        labels: Class index of each, int64 [n]; None where there are none.
        plan: The settings, the budget and the seed among them.
        batch_size: Images per run; runs of other sizes may differ in the last bit.
    """
    digest = hashlib.sha256(f"{plan!r} {batch_size} {images.shape} {labels is not None}".encode())
    digest.update(np.ascontiguousarray(images).data)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels, np.int64).data)
    return digest.hexdigest()


def cost_key(cost: AdditiveCost) -> str:
    """Digest of predicted latencies."""
    return hashlib.sha256(f"{cost.base!r} {cost.entries!r}".encode()).hexdigest()


def _subnet(space: GateSpace, item: object) -> tuple[Gates, tuple[float, ...]]:
    if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], list):
        raise UsageError("a subnet with its values is not a pair of lists")
    gates = space.from_json(item[0])
    if not all(type(value) in (int, float) and 0 <= value <= 1 for value in item[1]):
        raise UsageError(f"a value of {gates} is not in [0, 1]")
    return gates, tuple(map(float, item[1]))
