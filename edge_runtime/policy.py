"""Keep or switch: what the running loop does when the machine gets busy or calm. Pure: no clock, no sensor, no session.

The application's own latency is the signal. Every frame is divided by the p95 that its subnet has on the frontier, and
the **load** is the `down_after_frames`-th largest of these ratios in the last `window` frames: so many frames at least
were that slow, and fewer hiccups than that do not count. Frames of another subnet than the active one are forgotten.

- Down, when load x p95 of the active subnet is over the budget: to the best subnet that fits with `margin` to spare,
  else to one that just fits, else to the fastest above `floor`: what is late anyway should at least be right.
- Up, when a better subnet has fitted with `margin` to spare for the present patience: `up_after_s`, doubled each time
  that a climb had to be taken back soon, so that a load which only shows on the slower subnet makes no endless cycle.
- Never twice within `dwell_s`.

A load below 1 counts as 1: a machine that looks faster than when it was measured is not trusted until it is measured
again. The dwell is short, because going down is what repairs missed deadlines; patience is asked for going up only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from edge_runtime.checks import finite, positive, whole
from edge_runtime.errors import UsageError
from edge_runtime.gates import Gates
from edge_runtime.objectives import Frontier, Score

__all__ = ["AdaptationPolicy", "Decision", "History", "Reading"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One frame of the active subnet. Raises `UsageError` when built invalid."""

    time_s: float
    """When the frame was done, seconds of any clock that never goes back."""

    latency_ms: float
    """What the frame took, milliseconds, at least 0; of the same work that `Score.latency_ms` covers."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.time_s) and 0 <= self.latency_ms < math.inf):
            raise UsageError(f"a reading at {self.time_s} s with {self.latency_ms} ms is not a time and a latency")


@dataclass(frozen=True, slots=True)
class History:
    """What the policy remembers from one decision to the next; starts as `History()`."""

    gates: Gates | None = None
    """The subnet that `ratios` belong to."""

    ratios: tuple[float, ...] = ()
    """Latency over the subnet's p95, one per frame, oldest first, at most `window` of them."""

    switched_s: float = -math.inf
    """When the policy last switched, seconds."""

    climbed_s: float = -math.inf
    """When the policy last switched up, seconds; -inf again once it has gone down since."""

    calm_s: float = math.inf
    """Since when a better subnet has fitted without a break, seconds; inf while none does."""

    failed_climbs: int = 0
    """How many climbs in a row had to be taken back soon."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to run from the next frame on, and why."""

    gates: Gates
    """The subnet to run; the active one where `switch` is false."""

    switch: bool
    """Whether that is another subnet than the active one."""

    reason: str
    """For people. Example: ``latency 14.1 ms > 9.0 ms budget: load 1.8x; 0-0-0 -> 0-2-1``."""

    load: float | None
    """How much slower than on the calm machine, a factor; None before enough frames were seen."""

    history: History
    """What the next decision is to be given."""


@dataclass(frozen=True, slots=True)
class AdaptationPolicy:
    """When to move along the frontier. Raises `UsageError` when built invalid."""

    down_after_frames: int = 6
    """Slow frames within `window` that it takes to go down, at least 1."""

    window: int = 32
    """Frames that are remembered, at least `down_after_frames`."""

    up_after_s: float = 5.0
    """How long a better subnet must fit before the first climb, seconds, above 0."""

    max_up_after_s: float = 300.0
    """Longest patience after failed climbs, seconds, at least `up_after_s`."""

    dwell_s: float = 1.0
    """Least time between two switches, seconds, at least 0."""

    floor: float = 0.5
    """Share of the frontier's highest quality below which a subnet is not taken where nothing fits, 0 to 1: frames are
    late either way, and then a right answer is worth more than a wrong one. A budget that asks for less is followed."""

    margin: float = 0.1
    """Share of its latency that a target must have to spare under load, at least 0; less where the load is near 1."""

    def __post_init__(self) -> None:
        whole("down_after_frames", self.down_after_frames, low=1)
        whole("window", self.window, low=self.down_after_frames)
        positive("up_after_s", self.up_after_s)
        for name in ("dwell_s", "margin"):
            if finite(name, getattr(self, name)) < 0:
                raise UsageError(f"{name} is {getattr(self, name):g}, below 0")
        if not 0 <= finite("floor", self.floor) <= 1:
            raise UsageError(f"floor is {self.floor:g}", hint="give a share from 0 to 1")
        if finite("max_up_after_s", self.max_up_after_s) < self.up_after_s:
            raise UsageError(f"max_up_after_s is {self.max_up_after_s:g}, below up_after_s")

    def decide(
        self, reading: Reading, active: Score, frontier: Frontier, budget_ms: float, history: History
    ) -> Decision:
        """Keep the active subnet or switch; takes microseconds.

        Args:
            reading: The last frame, run by `active`.
            active: The running subnet; it need not be on the frontier.
            frontier: Where to go.
            budget_ms: Limit of the p95 latency of a frame, milliseconds, above 0; inf for none.
            history: The `history` of the previous decision.
        """
        history = self._remember(history, reading, active)
        if len(history.ratios) < self.down_after_frames:
            return Decision(active.gates, False, "too few frames since the last change", None, history)
        load = max(1.0, sorted(history.ratios)[-self.down_after_frames])
        fitting = frontier.best(budget_ms / self._factor(load))
        if load * active.latency_ms > budget_ms:
            target = fitting or frontier.best(budget_ms / load) or self._least_late(active, frontier, budget_ms)
            wait, history = self._why_not_down(reading, active, target, history)
        else:
            target = fitting or active
            wait, history = self._why_not_up(reading, active, target, history)
        if wait:
            return Decision(active.gates, False, wait, load, history)
        reason = _reason(active, target, frontier, budget_ms, load)
        return Decision(target.gates, True, reason, load, self._after_switch(reading, active, target, history))

    def _remember(self, history: History, reading: Reading, active: Score) -> History:
        ratio = reading.latency_ms / active.latency_ms
        if history.gates is not active.gates and history.gates != active.gates:
            return replace(history, gates=active.gates, ratios=(ratio,), calm_s=math.inf)
        ratios = (*history.ratios, ratio)[-self.window :]
        # Spelt out, because dataclasses.replace costs more than the rest of the decision, and this runs on every frame.
        h = history
        return History(h.gates, ratios, h.switched_s, h.climbed_s, h.calm_s, h.failed_climbs)

    def _least_late(self, active: Score, frontier: Frontier, budget_ms: float) -> Score:
        """Where nothing fits: the fastest that is of use, or as little as the budget asked for on a calm machine."""
        asked = frontier.best(budget_ms) or frontier.fastest
        return frontier.at_least(min(self.floor * frontier.highest.quality, active.quality, asked.quality))

    def _factor(self, load: float) -> float:
        """By how much a target's p95 is multiplied before it is compared; the margin grows from 0 on a calm machine."""
        return load + min(load - 1, load * self.margin)

    def _patience_s(self, history: History) -> float:
        return min(self.max_up_after_s, self.up_after_s * 2.0 ** min(history.failed_climbs, 60))

    def _dwelling(self, reading: Reading, history: History) -> bool:
        return reading.time_s - history.switched_s < self.dwell_s

    def _why_not_down(self, reading: Reading, active: Score, target: Score, history: History) -> tuple[str, History]:
        history = _calm_since(history, math.inf)
        if target.latency_ms >= active.latency_ms or target.gates == active.gates:
            return "over the budget, but nothing is faster", history
        return "over the budget, but switched only just now" if self._dwelling(reading, history) else "", history

    def _why_not_up(self, reading: Reading, active: Score, target: Score, history: History) -> tuple[str, History]:
        seen = len(history.ratios) == self.window
        if not seen or target.quality <= active.quality or target.gates == active.gates:
            return "inside the budget", _calm_since(history, math.inf)
        history = _calm_since(history, min(history.calm_s, reading.time_s))
        calm = reading.time_s - history.calm_s >= self._patience_s(history)
        if calm and not self._dwelling(reading, history):
            return "", history
        return "inside the budget, waiting before going up", history

    def _after_switch(self, reading: Reading, active: Score, target: Score, history: History) -> History:
        """Start afresh on the target; going down also judges the last climb, if there was one since the last time."""
        now, failed = reading.time_s, history.failed_climbs
        if target.latency_ms > active.latency_ms:
            return History(target.gates, (), now, now, math.inf, failed)
        if history.climbed_s > -math.inf:
            soon = now - history.climbed_s <= self._patience_s(history) + self.dwell_s
            failed = failed + 1 if soon or len(history.ratios) < self.window else 0
        return History(target.gates, (), now, -math.inf, math.inf, failed)


def _calm_since(history: History, time_s: float) -> History:
    return history if history.calm_s == time_s else replace(history, calm_s=time_s)


def _reason(active: Score, target: Score, frontier: Frontier, budget_ms: float, load: float) -> str:
    path = f"load {load:.1f}x; {active.gates} -> {target.gates}"
    if load * active.latency_ms <= budget_ms:
        gain = f"quality {active.quality:.1%} -> {target.quality:.1%}"
        return f"{gain} fits: latency {load * target.latency_ms:.1f} ms <= {budget_ms:.1f} ms budget: {path}"
    unmet = ""
    if load * target.latency_ms > budget_ms:
        unmet = f", nothing fits, the fastest {'' if target is frontier.fastest else 'of use '}is taken"
    return f"latency {load * active.latency_ms:.1f} ms > {budget_ms:.1f} ms budget{unmet}: {path}"
