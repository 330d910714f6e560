"""The searches of one open model: runs them here or in the background, and applies what they find."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from edge_runtime.adaptation import AdaptJob, AdaptPlan, AdaptResult, AdaptStatus, without_unusable
from edge_runtime.adaptation.background import BackgroundJob, Stop, StoppedError
from edge_runtime.adaptation.checkpoint import Checkpoints
from edge_runtime.adaptation.control import Control
from edge_runtime.adaptation.pace import FramePace
from edge_runtime.backends.base import Session
from edge_runtime.bundle import Bundle
from edge_runtime.errors import EdgeError, ResourceError
from edge_runtime.gates import Gates
from edge_runtime.inputs import Frame
from edge_runtime.measure import Clock
from edge_runtime.model.jobs import Check, Jobs, Labels
from edge_runtime.model.learned import Learned
from edge_runtime.model.witness import Witness
from edge_runtime.objectives import Budget, Frontier
from edge_runtime.swap import ActiveGates

__all__ = ["Searches", "Take"]

FOREGROUND_BATCH = 32
BACKGROUND_BATCH = 4
"""Images per run: a large batch is faster, a small one leaves the processor sooner."""

TELL_SECONDS = 0.1
"""How often whoever waits for a search in the background is told how far it is."""

Take = Callable[[], tuple[Frame, Labels | None]]
"""Gives the images of a search, and their labels; called in its thread."""


class Searches:
    """At most one search at a time, for the budget in force. Thread-safe where the model calls it from several threads.

    Args:
        bundle: What is searched.
        session: The session that serves frames.
        active: The active subnet.
        control: Takes what is found.
        learned: Remembers it.
        checkpoints: Where a running search is kept.
        budget: The budget in force at first.
        duty: Share of one CPU for a search in the background.
        threads: Threads inside an operator.
        clock_ns: Nanoseconds since some fixed moment.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        *,
        active: ActiveGates,
        control: Control,
        learned: Learned,
        checkpoints: Checkpoints,
        budget: Budget,
        duty: float,
        threads: int,
        clock_ns: Clock = time.perf_counter_ns,
    ) -> None:
        self.budget = budget
        """The budget in force."""
        self.status = _status_at_start(active.gates, None if learned.memory is None else learned.memory.frontier)
        """After the last search."""
        self.pace = FramePace()
        """When frames come: a search in the background works between them."""
        self.error: EdgeError | None = None
        """Why the last search in the background failed; None where it did not."""
        self._active, self._control, self._learned, self._checkpoints = active, control, learned, checkpoints
        self._duty, self._threads = duty, threads
        self._jobs = Jobs(bundle, session, checkpoints, calibrate=learned.predictions, clock_ns=clock_ns)
        self._background: BackgroundJob | None = None
        self._foreground: AdaptJob | None = None
        self._asked: tuple[Take, AdaptPlan] | None = None  # of the search in the background, while it runs
        self._witness = Witness(active.gates)
        self._lock = threading.Lock()  # held for moments: which search is the present one, and to apply its result

    @property
    def running(self) -> BackgroundJob | None:
        """The search in the background; None while there is none."""
        background = self._background
        return background if background is not None and background.running else None

    @property
    def limit_ms(self) -> float | None:
        """The latency limit in force, milliseconds; None without one, or where it is not known yet."""
        return self._learned.limit_ms(self.budget)

    def progress(self) -> AdaptStatus:
        """The present status: of the running search, else of the last one. Microseconds."""
        background, job = self.running, self._foreground
        if job is None and background is not None:
            job = background.job
            if job is None and background.running:
                return replace(self.status, phase="calibrate", progress=0.0, changed=False, reason="a search begins")
        if job is None:
            return self.status
        return replace(
            self.status,
            active=self._active.gates,
            phase=job.phase,
            progress=job.progress,
            changed=False,
            reason=f"searching: {job.phase}",
            samples=job.evaluator.count,
            labelled=job.evaluator.labelled,
            seconds=job.seconds,
            taken_up=job.evaluator.taken_up,
        )

    def run(
        self, images: Frame, labels: Labels | None, plan: AdaptPlan, tell: Callable[[AdaptStatus], None]
    ) -> AdaptStatus:
        """Search now, in this thread, and apply what was found; `tell` is called after each slice."""
        self.stop()
        before = self._active.gates
        job = self._foreground = self._job(images, labels, plan, FOREGROUND_BATCH)
        try:
            for _ in job.steps():
                tell(AdaptStatus(before, job.phase, job.progress, False, f"searching: {job.phase}"))
            with self._lock:
                status = self._apply(job, plan.budget, before)
                if plan.budget != self.budget:  # another thread gave a new one meanwhile
                    self._take_place()
                return status
        finally:
            self._foreground = None
            job.close()

    def start(self, take: Take, plan: AdaptPlan) -> None:
        """Search in the background for the budget in force, instead of what is searched there."""
        with self._lock:
            self._start(take, replace(plan, budget=self.budget))

    def set_budget(self, budget: Budget) -> None:
        """Take a new budget, and the place on the frontier that it asks for: the full subnet without a limit.

        What a search in the background finds for another budget is of no use: it begins again on the same images, or
        where no limit on the time is left, it ends.
        """
        with self._lock:
            if budget == self.budget:
                return
            self.budget = budget
            asked, background, self._asked = self._asked, self._background, None
            if background is not None:
                background.stop()
            self._take_place()
            if asked is not None and budget.limits_time:
                take, plan = asked
                self._start(take, replace(plan, budget=budget))

    def _take_place(self) -> None:
        """Go to the place on the frontier that the budget asks for."""
        frontier, limit_ms, reason = self._control.frontier, self.limit_ms, f"the budget is now {self.budget}"
        if not self.budget.limits_time:
            self._active.swap(self._active.gates.space.default, reason)
        elif frontier is not None and limit_ms is not None:
            self._active.swap((frontier.best(limit_ms) or frontier.fastest).gates, reason)

    def _start(self, take: Take, plan: AdaptPlan) -> None:
        before, stop = self._active.gates, Stop()
        witness = self._witness = Witness(before)

        def check() -> None:
            if stop.is_set():
                raise StoppedError

        def done(job: AdaptJob) -> None:
            with self._lock:
                if self._background is background and not stop.is_set():
                    self._end(job, plan.budget, before, witness)

        def failed(error: EdgeError) -> None:
            with self._lock:
                if self._background is background and not stop.is_set():
                    self._fail(error)

        old = self._background
        if old is not None:
            old.stop()
        self.error, self._asked = None, (take, plan)
        background = self._background = BackgroundJob(
            lambda: self._job(*take(), plan, BACKGROUND_BATCH, check),
            done=done,
            failed=failed,
            duty=self._duty,
            threads=self._threads,
            after=old,
            pace=self.pace,
            stop=stop,
        )

    def wait(self, tell: Callable[[AdaptStatus], None]) -> None:
        """Let the search in the background, and one that takes its place, use the whole time, and wait for its end.

        Raises what ended it; `tell` is called while it runs.
        """
        while (background := self.running) is not None:
            background.hurry()
            if not background.wait(TELL_SECONDS):
                tell(self.progress())
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End the search in the background, if there is one; what it finds from now on is dropped, its file stays."""
        with self._lock:
            background, self._background, self._asked = self._background, None, None
        if background is not None:
            background.close()

    def _job(
        self, images: Frame, labels: Labels | None, plan: AdaptPlan, batch_size: int, check: Check | None = None
    ) -> AdaptJob:
        current = self._active.gates
        return self._jobs.make(images, labels, plan, batch_size=batch_size, current=current, check=check)

    def observe(self, time_s: float, latency_ms: float, gates: Gates) -> None:
        """A frame was served by a subnet in so much time; frames of others than the active one say nothing of it."""
        if gates != self._active.gates:
            return
        background = self.running
        job = None if background is None else background.job
        if job is not None and job.phase == "measure":
            self._witness.add(gates, latency_ms)
        self._learned.observe(time_s, latency_ms, gates)

    def forget(self, gates: Gates) -> None:
        """Never go to a subnet again, nor after a restart: its outputs were unusable."""
        if gates not in self._control.unusable:
            self._control.forget(gates)
            self._learned.forget(self._control.unusable)

    def _end(self, job: AdaptJob, budget: Budget, before: Gates, witness: Witness) -> None:
        """Apply what a search in the background found, unless the loop's own frames speak against it."""
        self._asked = None
        stays = self._active.gates == before
        objection = witness.objection(_result_of(job), budget) if stays else None
        if objection is not None:
            self._checkpoints.remove()  # its time is used up
            self._fail(ResourceError(objection, hint="nothing was changed; the next search measures again"))
            return
        try:
            self._apply(job, budget, before)
        except EdgeError as error:
            self._fail(error)

    def _apply(self, job: AdaptJob, budget: Budget, before: Gates) -> AdaptStatus:
        """Make the chosen subnet the active one, tell the loop's control, remember it."""
        result = without_unusable(_result_of(job), self._control.unusable, budget)
        chosen = result.choice.score
        measured = tuple(c.score for c in result.candidates if c.score.measured)
        self._control.learn(result.frontier, measured)
        memory = self._learned.remember(result, budget, self._control.unusable)
        self._active.swap(chosen.gates, f"adapted: {result.choice.reason}")
        self._checkpoints.remove()
        self.status = AdaptStatus(
            active=self._active.gates,
            phase="done",
            progress=1.0,
            changed=chosen.gates != before,
            reason=result.choice.reason,
            frontier=result.frontier,
            candidates=result.candidates,
            budget=budget,
            limit_ms=memory.limit_ms(budget),
            full_latency_ms=result.full_latency_ms,
            samples=job.evaluator.count,
            labelled=job.evaluator.labelled,
            seconds=job.seconds,
            taken_up=job.evaluator.taken_up,
            ended_early=result.ended_early,
            variety=job.evaluator.variety,
        )
        return self.status

    def _fail(self, error: EdgeError) -> None:
        """Remember why the search in the background ended without a result."""
        self.error, self._asked = error, None
        self.status = replace(
            self.status, active=self._active.gates, phase="failed", progress=1.0, changed=False, reason=str(error)
        )


def _result_of(job: AdaptJob) -> AdaptResult:
    if job.result is None:
        raise EdgeError("the search did not end", hint="run its steps to the end")
    return job.result


def _status_at_start(active: Gates, frontier: Frontier | None) -> AdaptStatus:
    """Before the first search of this process."""
    reason = "no search was made yet" if frontier is None else "as the last search on this machine left it"
    return AdaptStatus(active, "idle", 1.0, False, reason, frontier)
