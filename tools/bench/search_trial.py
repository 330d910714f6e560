"""One search: what it is given, and what it found after how many evaluations."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from search_answers import NUMBERS, CountingSession, KeptClasses, Network, numbered
from search_blocks import plain_blocks, shared_blocks

from edge_runtime.additive import AdditiveCost, Plan
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import Gates, GateSpace

__all__ = ["Terms", "Trial"]

BATCH = 32
"""As the runtime evaluates."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Terms:
    """What all searches of one case and budget share."""

    cost: AdditiveCost
    """Latency by the one table, milliseconds."""

    prior: AdditiveCost
    """The bundle's expected damage."""

    limit_ms: float
    """Upper limit of the latency."""

    batched: float
    """Time of one image in a batch over its latency by the table."""

    network: Network
    kept: KeptClasses
    labels: Indices
    """Of all images of the case, [N]."""

    classes: int

    @property
    def space(self) -> GateSpace:
        """What is searched."""
        return self.cost.space

    @property
    def plan(self) -> Plan:
        """The space within the limit where nothing is known of quality: every decision that can still fit is alike."""
        return Plan(self.cost, self.cost.scaled(0.0), self.limit_ms)


class Trial:
    """Gives a searcher its images, and keeps count. For one search.

    Args:
        terms: what is shared with other searches.
        images: numbers of the images that it may look at; searches look at the first of them.
        seed: of the search.
        width: subnets that it asks for together, and that could share prefixes.
        kept: whether answers may come from the disk; not where probabilities matter.
    """

    def __init__(self, terms: Terms, images: Indices, seed: int, width: int, *, kept: bool) -> None:
        self.terms, self.seed, self._width, self._images = terms, seed, width, images
        answer = terms.network.logits
        if kept:
            answer = lambda gates, chosen: terms.kept.logits(gates, chosen, terms.classes)  # noqa: E731
        self.session = CountingSession(answer, terms.classes, terms.cost.scaled(terms.batched))
        self.found: list[dict[str, Any]] = []
        """What was the best so far, and after what; the last is the answer."""
        self._began_ns = time.perf_counter_ns()
        self._aside_ns = 0

    def evaluator(self, count: int, *, labelled: bool = True) -> Evaluator:
        """The runtime's own, on the first `count` images."""
        images = self._images[:count]
        labels = self.terms.labels[images] if labelled else None
        default = self.terms.space.default
        return Evaluator(self.session, default, numbered(images), NUMBERS, labels=labels, batch_size=BATCH)

    def tell(self, gates: Gates) -> None:
        """Say which subnet would be chosen now."""
        now_ns = time.perf_counter_ns()
        own_ns = now_ns - self._began_ns - self._aside_ns - self.session.inside_ns
        runs = self.session.runs
        point = {
            "gates": str(gates),
            "subnets": len({subnet for subnet, _ in runs}),
            "images": sum(len(images) for _, images in runs),
            "blocks": plain_blocks(runs),
            "shared_blocks": shared_blocks(runs, self._width),
            "round_blocks": shared_blocks(runs),
            "evaluation_s": self.session.cost_ns / 1e9,
            "own_s": own_ns / 1e9,
        }
        self.found.append(point)
        self._aside_ns += time.perf_counter_ns() - now_ns
