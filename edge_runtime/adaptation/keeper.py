"""Keeps one running search, so that the next process goes on with it: when, and what of the last one is taken up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from edge_runtime.adaptation.checkpoint import Checkpoint, Checkpoints, Course, cost_key
from edge_runtime.adaptation.status import Phase
from edge_runtime.additive import AdditiveCost
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import Gates
from edge_runtime.state import StateDir

__all__ = ["Keeper"]

EVERY_SECONDS = 2.0
"""Busy time between two writes of one phase: that much is lost at a kill. A quarter of it in the background's share."""

SEEDS = 4
"""Subnets of a search on other images that are tried first."""


class Keeper:
    """What one search takes from a checkpoint, and gives to it. Not thread-safe.

    Args:
        checkpoints: The file.
        key: Of this search (`search_key`).
        found: What the file held when this search was made.
        check: Called before each write; what it raises ends the search, and the file is left to the next one.
    """

    def __init__(
        self, checkpoints: Checkpoints, key: str, found: Checkpoint | None, check: Callable[[], None] | None = None
    ) -> None:
        self._checkpoints, self._key, self._check = checkpoints, key, check
        same = found is not None and found.key == key
        self._before = found if same else None
        self._seeds = () if found is None else found.best(SEEDS)
        self._moment: tuple[Phase, int] | None = None

    @classmethod
    def none(cls) -> Keeper:
        """Keeps nothing and has found nothing."""
        return cls(Checkpoints(StateDir(None, "nothing is kept"), "search.json"), "", None)

    @property
    def values(self) -> Mapping[Gates, tuple[float, ...]]:
        """Value in [0, 1] of subnets on the first images of this very search; empty where it is another's or none."""
        return {} if self._before is None else self._before.values

    def begin(self, cost: AdditiveCost, current: Gates) -> Course:
        """The course to follow: the one that was interrupted, or a new one from the active subnet and the best known.

        By other predictions a search asks for other subnets. It then begins anew, its time too, and knows the values.
        """
        table, before = cost_key(cost), self._before
        if before is not None and before.course.table == table:
            return before.course
        course = Course(tuple(dict.fromkeys((current, *self._seeds))), table)
        return course if before is None else replace(course, image_seconds=before.course.image_seconds)

    def keep(self, course: Course, evaluator: Evaluator, phase: Phase) -> None:
        """Write where a phase has begun or `EVERY_SECONDS` have gone since the last write; call it after each slice."""
        moment = phase, int(course.seconds / EVERY_SECONDS)
        if moment != self._moment:
            self._moment = moment
            if self._check is not None:
                self._check()
            self._checkpoints.write(Checkpoint(self._key, course, evaluator.known()))

    def forget(self) -> None:
        """The search has ended; what it was is of no more use."""
        self._checkpoints.remove()
