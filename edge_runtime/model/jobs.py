"""Makes the searches of one open model, and takes up the one that a killed process left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edge_runtime import sense
from edge_runtime.adaptation import AdaptJob, AdaptPlan, Finals
from edge_runtime.adaptation.checkpoint import Checkpoints, search_key
from edge_runtime.adaptation.keeper import Keeper
from edge_runtime.additive import AdditiveCost
from edge_runtime.backends.base import Session
from edge_runtime.backends.features import FeatureCache
from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError, UsageError
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import Gates
from edge_runtime.inputs import Frame, normalise
from edge_runtime.measure import Clock, LatencyModel, heeding
from edge_runtime.objectives import Budget

__all__ = ["MOST_FEATURE_BYTES", "Check", "Jobs", "Labels", "images_alike", "rail_for"]

Labels = npt.NDArray[np.int64]
Check = Callable[[], None]

MOST_FEATURE_BYTES = 32 << 20
"""What features that subnets share may take: those of some beginnings on two batches of 32 images at 112 px."""

LEAST_FREE_BYTES = 512 << 20
"""Free memory from which beginnings are shared: a MobileNetV2 at 112 px takes 170 MiB more so, in batches of 32."""

ALIKE_LEVELS = 1.5
"""Standard deviation over the images, in grey levels of 256, below which they show one and the same thing."""

ALIKE_FROM = 8
"""Images from which that is judged."""


class Jobs:
    """Makes one search after the other.

    Args:
        bundle: What is searched.
        session: The session that serves frames.
        checkpoints: Where a running search is kept.
        calibrate: Gives the latency table of this machine as it is now; called in the first slice of each search,
            with that search's `check`.
        clock_ns: Nanoseconds since some fixed moment.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        checkpoints: Checkpoints,
        *,
        calibrate: Callable[[Check | None], LatencyModel],
        clock_ns: Clock,
    ) -> None:
        self._manifest, self._session, self._checkpoints = bundle.manifest, session, checkpoints
        self._calibrate, self._clock_ns = calibrate, clock_ns
        self._prior = AdditiveCost.damage(bundle.manifest.space, bundle.manifest.prior)

    def make(
        self,
        images: Frame,
        labels: Labels | None,
        plan: AdaptPlan,
        *,
        batch_size: int,
        current: Gates,
        check: Check | None = None,
    ) -> AdaptJob:
        """A search; it goes on with a kept one on the same images, labels and plan, of another it tries the best first.

        Args:
            images: uint8 [n, H, W, 3] at the model's input size.
            labels: Class index of each; None searches by agreement with the full subnet.
            plan: How much is looked at.
            batch_size: Images per run.
            current: The active subnet.
            check: Called beside every timed run and before the search is kept; what it raises ends the search there.

        Raises:
            InputError: The images are all but the same.
            UsageError: The budget limits the energy, and this machine shows no power rail.
        """
        rail = rail_for(plan.budget)
        if images_alike(images):
            raise InputError(
                f"the {len(images)} images are all but the same", hint="give images of different scenes to adapt to"
            )
        order = np.random.default_rng(plan.seed).permutation(len(images))
        key = search_key(images, labels, plan, batch_size)
        keeper = Keeper(self._checkpoints, key, self._checkpoints.read(self._manifest.space), check)
        shuffled = None if labels is None else labels[order]
        evaluator = self._evaluator(images[order], shuffled, batch_size, keeper.values, plan.budget)
        one = {self._session.inputs[0].name: normalise(images[order[0]], self._manifest.preprocessing)[None]}
        return AdaptJob(
            finals=Finals(self._session, one, seed=plan.seed, rail=rail, clock_ns=heeding(self._clock_ns, check)),
            evaluator=evaluator,
            calibrate=lambda: self._calibrate(check),
            prior=self._prior,
            current=current,
            plan=plan,
            keeper=keeper,
            clock_ns=self._clock_ns,
        )

    def _evaluator(
        self,
        images: Frame,
        labels: Labels | None,
        batch_size: int,
        known: Mapping[Gates, Sequence[float]],
        budget: Budget,
    ) -> Evaluator:
        return Evaluator(
            self._session,
            self._manifest.space.default,
            images,
            self._manifest.preprocessing,
            labels=labels,
            batch_size=batch_size,
            known=known,
            features=_features(budget),
        )


def _features(budget: Budget) -> FeatureCache | None:
    """Where shared features go. None where memory is short or limited: beside them the parts take some of their own."""
    free = sense.memory_available_bytes()
    short = not isinstance(free, sense.Unknown) and free < LEAST_FREE_BYTES
    return None if short or budget.memory_mib is not None else FeatureCache(MOST_FEATURE_BYTES)


def rail_for(budget: Budget) -> sense.Rail | None:
    """Where power is read; None where the budget does not ask for it. `UsageError` where it asks and there is none."""
    if budget.energy_mj is None:
        return None
    rail = sense.find_rail()
    if isinstance(rail, sense.Unknown):
        raise UsageError(
            f"a limit of {budget.energy_mj:g} mJ needs the power of the board: {rail.reason}",
            hint="limit the latency instead: energy is power times time",
        )
    return rail


def images_alike(images: Frame) -> bool:
    """Whether images uint8 [n, H, W, 3] differ so little (black frames, a fixed scene) that they tell nothing."""
    if len(images) < ALIKE_FROM:
        return False
    spread = images[:, ::4, ::4].astype(np.float32).std(axis=0)
    return bool(spread.mean() < ALIKE_LEVELS)
