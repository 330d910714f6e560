"""What subnets answer on the images of a case, behind the seam that the runtime's own evaluator runs on.

Searches run the runtime's `Evaluator` on a `CountingSession`. Instead of pixels it takes frames of one pixel that hold
the number of an image: nothing is resized or normalised twice, and every run is counted where it comes in, as if no
answer had been known before. Behind it stand either the network itself, or the classes that it answered, which are kept
on disk for all draws and searches.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
from search_blocks import Run

from edge_runtime.additive import AdditiveCost
from edge_runtime.backends import Session
from edge_runtime.backends.base import Array
from edge_runtime.bundle import Preprocessing, TensorSpec
from edge_runtime.gates import Gates
from edge_runtime.inputs import Frame, normalise

__all__ = ["NUMBERS", "CountingSession", "KeptClasses", "Network", "numbered"]

NUMBERS = Preprocessing(height=1, width=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0)
"""Leaves the three bytes of a frame from `numbered` as they are."""

SURE = 30.0
"""Logit of a class that was kept without its probability."""

BATCH = 50

Indices = npt.NDArray[np.int64]
Answer = Callable[[Gates, Indices], Array]


def numbered(images: Indices) -> Frame:
    """Frames uint8 [n, 1, 1, 3] that hold the numbers of images, below 2**24."""
    parts = np.stack([images >> 16, images >> 8, images], axis=1) & 255
    return parts.astype(np.uint8)[:, None, None, :]


def _numbers(tensor: Array) -> Indices:
    high, middle, low = (tensor[:, channel, 0, 0].astype(np.int64) for channel in range(3))
    found: Indices = (high << 16) + (middle << 8) + low
    return found


class Network:
    """The bundle's session and the images of a case.

    Args:
        session: where subnets run.
        images: uint8 [N, H, W, 3] at the model's input size.
        preprocessing: from the manifest.
    """

    def __init__(self, session: Session, images: Frame, preprocessing: Preprocessing) -> None:
        self._session, self._images, self._preprocessing = session, images, preprocessing
        self.ran = 0
        """Images that really ran."""

    def __len__(self) -> int:
        return len(self._images)

    def logits(self, gates: Gates, images: Indices) -> Array:
        """What a subnet answers on numbered images, float32 [n, K]."""
        batch = np.stack([normalise(self._images[index], self._preprocessing) for index in images])
        self.ran += len(images)
        return self._session.run({self._session.inputs[0].name: batch}, gates)[self._session.outputs[0].name]


class KeptClasses:
    """The class that each subnet answers on each image; what is not known yet runs, and is kept in a file."""

    def __init__(self, network: Network, path: Path) -> None:
        self._network = network
        self._file = sqlite3.connect(path, isolation_level=None)
        self._file.execute("PRAGMA synchronous = OFF")
        self._file.execute("CREATE TABLE IF NOT EXISTS answers (subnet TEXT, images BLOB, classes BLOB)")
        self._known: dict[str, npt.NDArray[np.int32]] = {}
        for subnet, images, classes in self._file.execute("SELECT * FROM answers"):
            self._row(subnet)[np.frombuffer(images, np.int32)] = np.frombuffer(classes, np.int32)

    def _row(self, subnet: str) -> npt.NDArray[np.int32]:
        row = self._known.get(subnet)
        if row is None:
            row = self._known[subnet] = np.full(len(self._network), -1, np.int32)
        return row

    def classes(self, gates: Gates, images: Indices) -> Indices:
        """Classes int64 [n] of numbered images."""
        row = self._row(str(gates))
        missing = images[row[images] < 0]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            found = self._network.logits(gates, part).argmax(1).astype(np.int32)
            row[part] = found
            record = (str(gates), part.astype(np.int32).tobytes(), found.tobytes())
            self._file.execute("INSERT INTO answers VALUES (?, ?, ?)", record)
        return row[images].astype(np.int64)

    def logits(self, gates: Gates, images: Indices, count: int) -> Array:
        """Logits float32 [n, count] that are sure of the class: right for accuracies, for nothing else."""
        rows = np.zeros((len(images), count), np.float32)
        rows[np.arange(len(images)), self.classes(gates, images)] = SURE
        return rows

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class CountingSession:
    """Implements `Session` on numbered frames; says what every run costs, whether or not it was needed.

    Args:
        answer: logits of a subnet on numbered images.
        classes: number of logits.
        cost_ms: milliseconds that one image of a batch takes.
    """

    name = "counting"
    maps_weights = False
    threads = 1
    inputs = (TensorSpec("image", "float32", (None, 3, 1, 1)),)

    def __init__(self, answer: Answer, classes: int, cost_ms: AdditiveCost) -> None:
        self.outputs = (TensorSpec("logits", "float32", (None, classes)),)
        self._answer, self._cost_ms = answer, cost_ms
        self.runs: list[Run] = []
        """Everything that was asked for, in order."""
        self.cost_ns = 0
        """What it costs, nanoseconds."""
        self.inside_ns = 0
        """Time that was really spent in here, nanoseconds."""

    def run(self, inputs: Mapping[str, Array], gates: Gates) -> dict[str, Array]:
        """Answer and count; see `Session.run`."""
        began_ns = time.perf_counter_ns()
        images = _numbers(inputs["image"])
        self.runs.append((gates, tuple(images.tolist())))
        self.cost_ns += round(len(images) * self._cost_ms(gates) * 1e6)
        logits = self._answer(gates, images)
        self.inside_ns += time.perf_counter_ns() - began_ns
        return {"logits": logits}

    def prefer(self, gates: Gates) -> None:
        """Nothing is quicker than anything else here; see `Session.prefer`."""

    def hold(self, subnets: Sequence[Gates]) -> AbstractContextManager[None]:
        """Nothing is quicker than anything else here; see `Session.hold`."""
        return nullcontext()

    def close(self) -> None:
        """Nothing is open; see `Session.close`."""
