"""The objectives that are compared: each gives one score per subnet, higher is better, from answers on one sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_runtime.quality import (
    Values,
    agreement,
    certainty,
    confidence,
    correctness,
    effective_classes,
    few_labels,
    nuclear_norm,
    overlap,
    shrunken,
    teacher,
)

__all__ = ["OBJECTIVES", "Sample"]

MEMBERS = 5
"""Of the ensemble beside the full subnet: the best by soft agreement."""

FEW, MANY = 20, 200
DISPERSITY_WEIGHT = 0.3
SPREAD_CLASSES = 0.3
"""Share of the classes over which answers have to be spread before their dispersity is believed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a device has: answers of all subnets on its images. Labels are for the objectives that may see some."""

    shares: npt.NDArray[np.float64]
    """Probabilities of the subnets that are compared, [S, n, K]."""

    full: Values
    """Those of the full subnet, [n, K]."""

    labels: npt.NDArray[np.int64]
    """[n]."""

    damage: Values
    """By the bundle's prior, lower is better, [S]."""


Objective = Callable[[Sample], Values]


def _mean_of(values: Callable[[Values], Values]) -> Objective:
    return lambda sample: np.array([values(own).mean() for own in sample.shares])


def _agreement(sample: Sample) -> Values:
    return np.array([agreement(own, sample.full).mean() for own in sample.shares])


def _same_answer(sample: Sample) -> Values:
    found: Values = (sample.shares.argmax(axis=2) == sample.full.argmax(axis=1)).mean(axis=1)
    return found


def _overlap(sample: Sample) -> Values:
    return np.array([overlap(own, sample.full).mean() for own in sample.shares])


def _ensemble(sample: Sample) -> Values:
    """The teacher's probabilities: the full subnet with those that agree with it the most."""
    best = np.argsort(-_agreement(sample))[:MEMBERS]
    return teacher([sample.full, *sample.shares[best]])


def _crowd(sample: Sample) -> Values:
    """The mean of all subnets, the full one with the weight of a half."""
    return teacher([sample.full, teacher(list(sample.shares))])


def _with(
    make: Callable[[Sample], Values], value: Callable[[Values, Values], Values], *, sure: bool = False
) -> Objective:
    """Mean of a value against a teacher; `sure`: images count as much as the teacher is certain of them."""

    def score(sample: Sample) -> Values:
        reference = make(sample)
        weights = certainty(reference) if sure else np.ones(len(reference))
        return np.array([(weights * value(own, reference)).sum() for own in sample.shares]) / max(weights.sum(), 1e-9)

    return score


def _dispersity(sample: Sample) -> Values:
    return np.array([nuclear_norm(own) for own in sample.shares])


def _mixed(sample: Sample, *, guarded: bool) -> Values:
    agreed = _agreement(sample)
    classes = sample.shares.shape[2]
    if guarded and effective_classes(sample.full) < SPREAD_CLASSES * classes:
        return agreed
    return _standard(agreed) + DISPERSITY_WEIGHT * _standard(_dispersity(sample))


def _standard(values: Values) -> Values:
    found: Values = (values - values.mean()) / max(float(values.std()), 1e-9)
    return found


def _accuracy(count: int | None) -> Objective:
    def score(sample: Sample) -> Values:
        return np.array([correctness(own[:count], sample.labels[:count]).mean() for own in sample.shares])

    return score


def _estimated(make: Callable[[Sample], Values]) -> Objective:
    """Few labels with the agreement with a teacher as their proxy."""

    def score(sample: Sample) -> Values:
        reference = make(sample)
        found = []
        for own in sample.shares:
            proxy = agreement(own, reference)
            found.append(few_labels(correctness(own[:FEW], sample.labels[:FEW]), proxy[:FEW], proxy[FEW:])[0])
        return np.array(found)

    return score


def _corrected(count: int | None, make: Callable[[Sample], Values], share: float) -> Objective:
    """Agreement with a teacher that was told some labels: on these images the label has a share in its answer."""

    def score(sample: Sample) -> Values:
        reference = make(sample).copy()
        told = np.eye(reference.shape[1])[sample.labels[:count]]
        reference[:count] = (1 - share) * reference[:count] + share * told
        return np.array([agreement(own, reference).mean() for own in sample.shares])

    return score


def _shrunken(make: Callable[[Sample], Values]) -> Objective:
    """Agreement, drawn towards what the prior says."""

    def score(sample: Sample) -> Values:
        reference = make(sample)
        values = np.stack([agreement(own, reference) for own in sample.shares])
        return shrunken(values, sample.damage[:, None])

    return score


def _shrunken_accuracy(count: int | None, make: Callable[[Sample], Values]) -> Objective:
    """Accuracy on some labels, drawn towards what the prior and the agreement on all images say."""

    def score(sample: Sample) -> Values:
        values = np.stack([correctness(own[:count], sample.labels[:count]) for own in sample.shares])
        agreed = _with(make, agreement)(sample)
        return shrunken(values, np.column_stack([sample.damage, agreed]))

    return score


def _full(sample: Sample) -> Values:
    return sample.full


OBJECTIVES: Mapping[str, Objective] = {
    "prior": lambda sample: -sample.damage,
    "confidence": _mean_of(confidence),
    "certainty": _mean_of(certainty),
    "same answer": _same_answer,
    "soft agreement": _agreement,
    "overlap": _overlap,
    "overlap, sure images": _with(_full, overlap, sure=True),
    "agreement, ensemble": _with(_ensemble, agreement),
    "overlap, ensemble": _with(_ensemble, overlap),
    "overlap, ensemble, sure images": _with(_ensemble, overlap, sure=True),
    "agreement, crowd": _with(_crowd, agreement),
    "overlap, crowd": _with(_crowd, overlap),
    "agreement + prior": lambda sample: _standard(_agreement(sample)) - _standard(sample.damage),
    "agreement, ensemble + prior": lambda sample: (
        _standard(_with(_ensemble, agreement)(sample)) - _standard(sample.damage)
    ),
    "agreement, shrunken": _shrunken(_full),
    "agreement, ensemble, shrunken": _shrunken(_ensemble),
    "dispersity": _dispersity,
    "agreement + dispersity": lambda sample: _mixed(sample, guarded=False),
    "agreement + dispersity, guarded": lambda sample: _mixed(sample, guarded=True),
    f"{FEW} labels": _accuracy(FEW),
    f"{FEW} labels in the teacher": _corrected(FEW, _full, 0.5),
    f"{FEW} labels in the ensemble": _corrected(FEW, _ensemble, 0.5),
    f"{MANY} labels in the teacher": _corrected(MANY, _full, 0.5),
    f"{MANY} labels in the ensemble": _corrected(MANY, _ensemble, 0.5),
    f"{MANY} labels, softly": _corrected(MANY, _full, 1.0),
    f"{FEW} labels + agreement": _estimated(_full),
    f"{FEW} labels + ensemble": _estimated(_ensemble),
    f"{FEW} labels, shrunken": _shrunken_accuracy(FEW, _ensemble),
    f"{MANY} labels, shrunken": _shrunken_accuracy(MANY, _ensemble),
    f"{MANY} labels": _accuracy(MANY),
    "all labels": _accuracy(None),
}
"""By name. Those with labels are what the others are measured against."""
