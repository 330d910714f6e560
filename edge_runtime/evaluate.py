"""Quality of a subnet on local data: accuracy where there are labels, soft agreement with the full subnet elsewhere.

Both are means of one value in [0, 1] per image (`edge_runtime.quality`), so two subnets are always compared in pairs,
on the same images. On few images with labels the probability of the right class ranks subnets better than how often it
is the largest one; it is kept too, for that alone. A subnet is run on further images only when they are asked for. What
an earlier process found on the same images is taken up batch by batch instead of a run, so that all else goes as then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edge_runtime.backends.base import Array, Session, SessionParts
from edge_runtime.backends.features import FeatureCache, Features
from edge_runtime.bundle import Preprocessing
from edge_runtime.errors import BackendError, InputError
from edge_runtime.gates import Gates
from edge_runtime.inputs import Frame, check_labels, normalise
from edge_runtime.objectives import Score
from edge_runtime.quality import (
    Comparison,
    Values,
    agreement,
    effective_classes,
    graded,
    probabilities,
    wilson_interval,
)

__all__ = ["Evaluator"]

VARIED_CLASSES = 4.0
"""Effective number of classes among the full subnet's answers from which images are varied."""


class Evaluator:
    """Runs subnets on one set of images and keeps the value of each on each image. Not thread-safe."""

    def __init__(
        self,
        session: Session,
        default: Gates,
        images: Frame,
        preprocessing: Preprocessing,
        *,
        labels: npt.NDArray[np.int64] | None = None,
        batch_size: int = 32,
        known: Mapping[Gates, Sequence[float]] | None = None,
        features: FeatureCache | None = None,
    ) -> None:
        """Take images uint8 [n, H, W, 3] at the model's input size; nothing runs yet.

        Args:
            session: Where subnets run; its first input takes the images, its first output holds class logits [n, K].
            default: The full subnet, the reference of the soft agreement.
            images: In an order of which every beginning is a fair sample (shuffle them first).
            preprocessing: From the manifest.
            labels: Class index of each image, int64 [n]; None evaluates by agreement with the full subnet.
            batch_size: Images per run; larger is faster up to about 64, smaller leaves the processor sooner.
            known: What `known` gave for the first of these very images; not run again.
            features: Where beginnings that subnets share are kept, so that they run once; None runs each subnet whole.
        """
        if images.ndim != 4 or not len(images):
            raise InputError(f"images to evaluate on have the shape [n, H, W, 3], got {list(images.shape)}")
        self._session = session
        self._default = default
        self._images, self._count = images, len(images)
        self._preprocessing = preprocessing
        self._labels = None if labels is None else check_labels(labels, len(images))
        self._batch_size = batch_size
        self._features = features
        self._parts: SessionParts | None = None
        self._input = session.inputs[0].name
        self._output = session.outputs[0].name
        self._reference: list[Values] = []
        self._named = self._labelled_classes()
        self._values: dict[Gates, Values] = {}
        self._known = {gates: np.asarray(values[: len(images)], np.float64) for gates, values in (known or {}).items()}
        if labels is None:
            self._known.pop(default, None)  # as the reference it has to run
        self.taken_up = 0
        """Values that were known, and are in use instead of a run."""

    @property
    def count(self) -> int:
        """Number of images."""
        return self._count

    @property
    def labelled(self) -> bool:
        """Whether quality means accuracy (else soft agreement)."""
        return self._labels is not None

    @property
    def variety(self) -> float:
        """How much the images can tell, 0 to 1: 0 where the labels, or else the full subnet, name one class for all.

        Of all subnets one that names that class for anything is best on such images. 1 before the full subnet was run.
        """
        if not len(self._named):
            return 1.0
        most = min(VARIED_CLASSES, float(len(self._named)))
        return min(1.0, (effective_classes(self._named[None]) - 1) / (most - 1)) if most > 1 else 0.0

    def seen(self, gates: Gates) -> int:
        """Number of images that the subnet was run on so far."""
        return len(self._values.get(gates, ()))

    def values(self, gates: Gates) -> Values:
        """Value in [0, 1] of the subnet on each image it was run on, float64 [seen]; with labels 1 where right."""
        kept = self._values.get(gates, np.empty(0))
        return np.asarray(kept > 0.5, np.float64) if self.labelled else kept

    def fine_values(self, gates: Gates) -> Values:
        """What ranks subnets, as `values`; with labels the probability of the right class."""
        kept = self._values.get(gates, np.empty(0))
        return 2 * kept - self.values(gates) if self.labelled else kept

    def stop_sharing(self) -> None:
        """Run each subnet whole from now on, and give back the memory that sharing took."""
        self._features = self._parts = None

    def close(self) -> None:
        """Overwrite the images, which must be its own, with zeros and let go of them; nothing more can run."""
        self.stop_sharing()
        self._images[:] = 0
        self._images = self._images[:0]

    def known(self) -> dict[Gates, tuple[float, ...]]:
        """All that is kept of each image, what was not taken up yet too: with labels `graded` values, else `values`.

        Without the reference, which agrees with itself.
        """
        found = {gates: tuple(values.tolist()) for gates, values in self._known.items()}
        for gates, values in self._values.items():
            if len(values) > len(found.get(gates, ())) and (self.labelled or gates != self._default):
                found[gates] = tuple(values.tolist())
        return found

    def missing(self, gates: Gates, count: int) -> int:
        """Of the first `count` images, how many a subnet would have to run on."""
        return max(0, min(count, self.count) - max(self.seen(gates), len(self._known.get(gates, ()))))

    def advance(self, gates: Gates, count: int | None = None) -> bool:
        """Run, or take up, at most one batch towards `count` images (None: all); returns whether they are done."""
        goal = self.count if count is None else min(count, self.count)
        start = self.seen(gates)
        if start >= goal:
            return True
        stop = min(start + self._batch_size, goal)
        values = self._known.get(gates, np.empty(0))[start:stop]
        self.taken_up += len(values)
        if not len(values):
            if self._labels is None and self._reference_seen() < stop:
                self._extend_reference()
                return False
            values = self._value(self._run(gates, start, stop), start, stop)
        self._values[gates] = np.concatenate([self._values.get(gates, np.empty(0)), values])
        return self.seen(gates) >= goal

    def score(
        self,
        gates: Gates,
        latency_ms: float,
        *,
        count: int | None = None,
        peak_bytes: int | None = None,
        measured: bool = False,
        fine: bool = False,
    ) -> Score:
        """Run what is missing of the first `count` images (None: all); the score is of all images seen.

        Its quality is the mean of `values`, or where it is to rank subnets that of `fine_values`.
        """
        while not self.advance(gates, count):
            pass
        values = self.fine_values(gates) if fine else self.values(gates)
        quality = float(values.mean())
        low, high = wilson_interval(quality, len(values))
        return Score(gates, quality, low, high, len(values), latency_ms, peak_bytes, measured)

    def compare(self, first: Gates, second: Gates) -> Comparison:
        """Quality of `first` minus that of `second` on the images that both were run on."""
        return Comparison.of(self.values(first), self.values(second))

    def _labelled_classes(self) -> Values:
        """How many images have each class as their label, float64 [K]; empty without labels."""
        if self._labels is None:
            return np.zeros(0)
        classes = self._session.outputs[0].shape[-1] or 0
        return np.bincount(self._labels, minlength=classes).astype(np.float64)

    def _reference_seen(self) -> int:
        return sum(len(part) for part in self._reference)

    def _extend_reference(self) -> None:
        start = self._reference_seen()
        stop = min(start + self._batch_size, self.count)
        shares = self._run(self._default, start, stop)
        self._reference.append(shares)
        answered = shares[shares.sum(axis=1) > 0]  # a row that was not finite names no class
        named = np.bincount(answered.argmax(axis=1), minlength=shares.shape[1]).astype(np.float64)
        self._named = named + (self._named if len(self._named) else 0.0)
        # The full subnet agrees with itself by definition; it need not run again.
        self._values[self._default] = np.ones(stop)

    def _run(self, gates: Gates, start: int, stop: int) -> Values:
        batch = np.stack([normalise(image, self._preprocessing) for image in self._images[start:stop]])
        features = None if self._features is None else self._features.of(start, stop)
        logits = self._outputs({self._input: batch}, gates, features)[self._output]
        if logits.ndim != 2 or len(logits) != stop - start:
            raise BackendError(f"output {self._output!r} has the shape {list(logits.shape)} for {stop - start} images")
        return probabilities(logits)

    def _outputs(self, inputs: Mapping[str, Array], gates: Gates, features: Features | None) -> Mapping[str, Array]:
        """The full subnet runs whole: it has a quicker form, and is asked for once."""
        if features is None or gates == self._default:
            return self._session.run(inputs, gates)
        if self._parts is None:
            self._parts = self._session.in_parts()
            if self._parts is None:
                self._features = None
                return self._session.run(inputs, gates)
        return self._parts.run(inputs, gates, features)

    def _value(self, shares: Values, start: int, stop: int) -> Values:
        if self._labels is not None:
            return graded(shares, self._labels[start:stop])
        return agreement(shares, np.concatenate(self._reference)[start:stop])
