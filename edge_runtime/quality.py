"""What a subnet is worth on local images, from its class probabilities: accuracy, and what stands for it.

Each objective is one small function. Those that give one value in [0, 1] per image can be compared in pairs, on the
same images (`Comparison`); `nuclear_norm` and `effective_classes` look at all images at once. Probabilities are float64
[n, K], rows that sum to 1, or to 0 where a subnet gave nothing usable: such a row is worth nothing to any of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import UsageError

__all__ = [
    "Comparison",
    "Values",
    "agreement",
    "certainty",
    "confidence",
    "correctness",
    "effective_classes",
    "few_labels",
    "graded",
    "nuclear_norm",
    "overlap",
    "probabilities",
    "shrunken",
    "teacher",
    "wilson_interval",
]

Values = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

Z_95 = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""

LEAST_SUBNETS = 8
"""Subnets beyond the number of covariates from which a line through them is believed."""

MIN_LABELS = 16
"""Labels from which a correlation with them is believed."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Quality of one subnet minus that of another on the same images, with a 95 % interval."""

    difference: float
    """Mean difference of quality, in [-1, 1]."""

    low: float
    """Lower end of the interval; above 0 the first subnet is significantly better."""

    high: float
    """Upper end of the interval; below 0 the second subnet is significantly better."""

    samples: int
    """Images that both were run on."""

    @property
    def better(self) -> bool:
        """Whether the first subnet is significantly better."""
        return self.low > 0

    @classmethod
    def of(cls, first: Values, second: Values) -> Comparison:
        """Compare paired values; two opposite pseudo-pairs keep few differing images from looking certain.

        They are those of Agresti and Min, "Simple improved confidence intervals for comparing matched proportions"
        (2005), scaled to the largest difference seen, so that the same form serves fractions: 5 images against 0 are
        not significant, 6 are, as by the exact sign test.
        """
        count = min(len(first), len(second))
        if count < 2:
            return cls(0.0, -1.0, 1.0, count)
        delta = first[:count] - second[:count]
        largest = float(np.abs(delta).max())
        padded = np.concatenate([delta, [largest, -largest]])
        centre = float(padded.mean())
        margin = Z_95 * math.sqrt(float(padded.var()) / len(padded))
        return cls(float(delta.mean()), centre - margin, centre + margin, count)


def wilson_interval(mean: float, samples: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a mean of values in [0, 1].

    For accuracies it is the usual one; for fractions it is conservative: their variance is at most mean * (1 - mean).
    """
    if samples < 1:
        return 0.0, 1.0
    squared = Z_95 * Z_95
    centre = (mean + squared / (2 * samples)) / (1 + squared / samples)
    spread = mean * (1 - mean) / samples + squared / (4 * samples * samples)
    margin = Z_95 / (1 + squared / samples) * math.sqrt(max(spread, 0.0))
    return max(0.0, min(mean, centre - margin)), min(1.0, max(mean, centre + margin))


def probabilities(logits: npt.NDArray[np.generic]) -> Values:
    """Softmax over the last axis in float64; a row that is not finite becomes all zero, which agrees with nothing."""
    rows = np.asarray(logits, np.float64)
    bad = np.asarray(~np.isfinite(rows).all(axis=-1))
    rows = np.where(bad[..., None], 0.0, rows)
    powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
    shares: Values = powers / powers.sum(axis=-1, keepdims=True)
    shares[bad] = 0.0
    return shares


def correctness(shares: Values, labels: Labels) -> Values:
    """1.0 for each image whose label has the largest probability, else 0.0."""
    return np.asarray((shares.argmax(axis=1) == labels) & (shares.sum(axis=1) > 0), np.float64)


def graded(shares: Values, labels: Labels) -> Values:
    """Half whether the label has the largest probability, half that probability: above 0.5 exactly where it has."""
    found: Values = (correctness(shares, labels) + shares[np.arange(len(labels)), labels]) / 2
    return found


def agreement(shares: Values, reference: Values) -> Values:
    """Soft agreement with a reference, ``min(1, <p, r> / <r, r>)`` per image.

    1 where a subnet answers as surely as the reference does, 0 where it answers something else; on images on which the
    reference is itself unsure disagreement costs little. Mere confidence does not raise it.
    """
    norms = np.einsum("nk,nk->n", reference, reference)
    shared = overlap(shares, reference)
    found: Values = np.minimum(1.0, np.divide(shared, norms, out=np.zeros_like(shared), where=norms > 0))
    return found


def overlap(shares: Values, reference: Values) -> Values:
    """``<p, r>`` per image: the chance that two answers drawn from the two are the same."""
    found: Values = np.einsum("nk,nk->n", shares, reference)
    return found


def confidence(shares: Values) -> Values:
    """The largest probability of each image. Small subnets are often surer than they are right."""
    found: Values = shares.max(axis=1)
    return found


def certainty(shares: Values) -> Values:
    """``1 - H(p) / log K`` per image, 0 where all classes are equally likely."""
    logs = np.log(np.where(shares > 0, shares, 1.0))
    entropy = -(shares * logs).sum(axis=1)
    found: Values = np.where(shares.sum(axis=1) > 0, 1 - entropy / math.log(max(2, shares.shape[1])), 0.0)
    return found


def teacher(members: Sequence[Values]) -> Values:
    """The mean of several subnets' probabilities on the same images."""
    if not members:
        raise UsageError("a teacher of no subnets answers nothing", hint="give at least the full subnet's answers")
    found: Values = np.mean(np.stack(members), axis=0)
    return found


def nuclear_norm(shares: Values) -> float:
    """``|P|_* / sqrt(min(n, K) n)`` in [0, 1]: high where answers are sure and spread over the classes.

    Deng et al. 2023, "Confidence and dispersity speak" (arXiv 2302.01094). Misleads where the true classes are few.
    """
    count, classes = shares.shape
    return float(np.linalg.norm(shares, "nuc")) / math.sqrt(min(count, classes) * count)


def effective_classes(shares: Values) -> float:
    """``exp(H(mean of the rows))``, 1 to K: over how many classes the answers are spread."""
    total = shares.sum(axis=0)
    mean = total[total > 0] / max(float(total.sum()), 1e-300)
    return float(np.exp(-(mean * np.log(mean)).sum())) if len(mean) else 1.0


def few_labels(correct: Values, proxy: Values, proxy_unlabelled: Values) -> tuple[float, float, float]:
    """Accuracy from few labels and many unlabelled images: the estimate, and its 95 % interval.

    ``g mean_u(A) + mean_l(1[correct] - g A)`` with A the proxy and g chosen for the least variance
    (PPI++: Angelopoulos et al. 2023, arXiv 2311.01453). A proxy whose correlation with the labels is within a standard
    error of nothing gets g = 0: the labels alone. With 20 labels the interval covers about 91 % instead of 95.

    Args:
        correct: 1.0 or 0.0 for each labelled image, at least two.
        proxy: an unlabelled objective's value on the same images.
        proxy_unlabelled: its value on the other images; may be empty.
    """
    count, others = len(correct), len(proxy_unlabelled)
    if count < 2 or len(proxy) != count:
        raise UsageError(f"few_labels needs two labelled images or more, with a proxy each: {count} and {len(proxy)}")
    gain = _gain(correct, proxy, proxy_unlabelled)
    rectified = correct - gain * proxy
    mean = rectified.mean() + (gain * proxy_unlabelled.mean() if others else 0.0)
    variance = rectified.var(ddof=1) / count + (gain**2 * proxy_unlabelled.var() / others if others else 0.0)
    low, high = wilson_interval(float(correct.mean()), count)
    # Few labels that are all right have no variance; Wilson's interval, of the labels alone, is what they can say then.
    margin = Z_95 * math.sqrt(variance) if gain else max(high - correct.mean(), correct.mean() - low)
    value = min(1.0, max(0.0, float(mean)))
    return value, max(0.0, value - margin), min(1.0, value + margin)


def _gain(correct: Values, proxy: Values, proxy_unlabelled: Values) -> float:
    """The weight of the proxy; 0 where its correlation with the labels is within its standard error."""
    count, others = len(correct), len(proxy_unlabelled)
    spread = np.concatenate([proxy, proxy_unlabelled]).var()
    if count < MIN_LABELS or not others or spread < 1e-12 or correct.std() < 1e-9 or proxy.std() < 1e-9:
        return 0.0
    if np.corrcoef(correct, proxy)[0, 1] < 1 / math.sqrt(count - 2):
        return 0.0
    covariance = np.cov(correct, proxy)[0, 1]
    return float(covariance / (spread * (1 + count / others)))


def shrunken(values: Values, covariates: Values) -> Values:
    """Means of many subnets' values, drawn towards what covariates say of them.

    A line through all means predicts each from its covariates (the bundle's prior, an agreement). What the means differ
    from it by beyond their sampling noise is the subnets' own; each keeps that share of its difference. The noise is
    that of differences between subnets, as all saw the same images. (Empirical Bayes: Morris 1983, "Parametric
    empirical Bayes inference"; Fay and Herriot 1979.)

    Args:
        values: one row per subnet on the same images, [S, n].
        covariates: of each subnet, any scale, [S, m].

    Returns:
        [S]; the plain means where there are too few subnets or images to tell.
    """
    means: Values = values.mean(axis=1)
    subnets, count = values.shape
    spread = covariates.std(axis=0)
    scaled = (covariates - covariates.mean(axis=0))[:, spread > 0] / spread[spread > 0]
    design = np.column_stack([np.ones(subnets), scaled])
    if subnets < LEAST_SUBNETS + design.shape[1] or count < 2:
        return means
    predicted = design @ np.linalg.lstsq(design, means, rcond=None)[0]
    noise = (values - values.mean(axis=0)).var(axis=1, ddof=1) / count
    left = ((means - predicted) ** 2).sum() / (subnets - design.shape[1])
    own = max(0.0, float(left - noise.mean()))
    kept = np.divide(own, own + noise, out=np.ones_like(noise), where=own + noise > 0)
    found: Values = predicted + kept * (means - predicted)
    return found
