"""What subnets with the same beginning have in common on one batch, kept in a bounded number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeAlias

from edge_runtime.backends.base import Array, Beginning
from edge_runtime.checks import whole

__all__ = ["FeatureCache", "Features"]

Batch: TypeAlias = tuple[int, int]
"""Numbers of the first image of a batch and of the first one behind it."""

_Key: TypeAlias = tuple[Batch, Beginning]


class FeatureCache:
    """Features by batch and beginning of a subnet; what was not used for the longest time goes first. Not thread-safe.

    Args:
        max_bytes: What all arrays may take together, 0 or more; an array that is larger alone is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = whole("max_bytes", max_bytes)
        """What all arrays may take together."""
        self.bytes = 0
        """What they take now."""
        self._kept: OrderedDict[_Key, Array] = OrderedDict()

    def of(self, start: int, stop: int) -> Features:
        """The features of the images from `start` on, up to and without `stop`: the same images each time."""
        return Features(self, (start, stop))

    def get(self, key: _Key) -> Array | None:
        """What is kept of a beginning on a batch; it counts as used."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: _Key, value: Array) -> None:
        """Keep an array, in place of those that were not used for the longest time."""
        self.drop(key)
        if value.nbytes > self.max_bytes:
            return
        self._kept[key] = value
        self.bytes += value.nbytes
        while self.bytes > self.max_bytes:
            self.drop(next(iter(self._kept)))

    def drop(self, key: _Key) -> None:
        """Forget an array, if it is kept."""
        self.bytes -= getattr(self._kept.pop(key, None), "nbytes", 0)


@dataclass(frozen=True, slots=True)
class Features:
    """One batch's part of a cache; implements `SharedFeatures`."""

    cache: FeatureCache
    """Where they are."""

    batch: Batch
    """Which images."""

    def get(self, beginning: Beginning) -> Array | None:
        """What a beginning came to, None where it is not known any more."""
        return self.cache.get((self.batch, beginning))

    def put(self, beginning: Beginning, value: Array) -> None:
        """Keep what a beginning came to."""
        self.cache.put((self.batch, beginning), value)
