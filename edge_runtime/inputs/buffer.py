"""The sample buffer: the only place where the runtime keeps frames, and only when the user asked for it."""

from __future__ import annotations

import threading

import numpy as np

from edge_runtime.checks import whole
from edge_runtime.errors import InputError
from edge_runtime.inputs.frames import Frame

__all__ = ["SampleBuffer"]


class SampleBuffer:
    """The last images of the camera loop that the user agreed to keep: bounded, in memory only, zeroed on `close`.

    Once full, a new image replaces a random one: ages then fall off geometrically, and a burst of equal frames does
    not push everything else out at once. Thread-safe.
    """

    def __init__(self, capacity: int, height: int, width: int, seed: int) -> None:
        if capacity < 0:
            raise InputError(f"buffer_frames is {capacity}", hint="give 0 (keep nothing) or the number of frames")
        self._pixels = np.zeros((capacity, height, width, 3), np.uint8)
        self._random = np.random.default_rng(whole("seed", seed))
        self._count = 0
        self._lock = threading.Lock()

    @property
    def capacity(self) -> int:
        """Largest number of images held."""
        return len(self._pixels)

    def __len__(self) -> int:
        return self._count

    def add(self, image: Frame) -> None:
        """Copy one image uint8 [height, width, 3] in."""
        if not self.capacity:
            return
        with self._lock:
            if not self.capacity:  # closed meanwhile
                return
            full = self._count == self.capacity
            slot = int(self._random.integers(self.capacity)) if full else self._count
            self._pixels[slot] = image
            self._count += not full

    def images(self) -> Frame:
        """A copy of what is held: uint8 [n, height, width, 3]."""
        with self._lock:
            held: Frame = self._pixels[: self._count].copy()
            return held

    def close(self) -> None:
        """Overwrite every pixel with zero and hold nothing from now on."""
        with self._lock:
            self._pixels[...] = 0
            self._pixels = self._pixels[:0]
            self._count = 0
