"""The searches of one open model: runs them here or in the background, keeps and applies what they find."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from edge_runtime.adaptation import AdaptJob, AdaptPlan, AdaptResult, AdaptStatus
from edge_runtime.adaptation.background import BackgroundJob, Stop, StoppedError
from edge_runtime.adaptation.checkpoint import Checkpoints
from edge_runtime.adaptation.control import Control
from edge_runtime.adaptation.memory import Memory
from edge_runtime.adaptation.pace import FramePace
from edge_runtime.backends.base import Session, SessionOptions
from edge_runtime.bundle import Bundle
from edge_runtime.errors import EdgeError, ResourceError, StateError
from edge_runtime.gates import Gates
from edge_runtime.inputs import Frame
from edge_runtime.measure import Clock, Drift, LatencyModel, calibrate
from edge_runtime.model.jobs import Check, Jobs, Labels
from edge_runtime.model.witness import Witness
from edge_runtime.objectives import Budget, Score
from edge_runtime.state import StateDir
from edge_runtime.swap import ActiveGates

__all__ = ["Searches"]

FOREGROUND_BATCH = 32
BACKGROUND_BATCH = 4
"""Images per run: a large batch is faster, a small one leaves the processor sooner."""

TELL_SECONDS = 0.1
"""How often whoever waits for a search in the background is told how far it is."""

Take = Callable[[], tuple[Frame, Labels | None]]


class Searches:
    """At most one search at a time. Thread-safe where the model calls it from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        options: SessionOptions,
        *,
        active: ActiveGates,
        control: Control,
        state: StateDir,
        memory_name: str,
        memory: Memory | None,
        duty: float,
        seed: int,
        clock_ns: Clock = time.perf_counter_ns,
    ) -> None:
        self.memory = memory
        """What is known of this bundle on this machine; None before the first calibration."""
        self.drift = Drift()
        """How the machine's speed has changed since the table was made."""
        self.status = _status_at_start(active.gates, memory)
        """After the last search."""
        self.pace = FramePace()
        """When frames come: a search in the background works between them."""
        self.error: EdgeError | None = None
        """Why the last search in the background failed; None where it did not."""
        self._bundle, self._session, self._options = bundle, session, options
        self._active, self._control, self._state = active, control, state
        self._memory_name, self._duty, self._seed, self._clock_ns = memory_name, duty, seed, clock_ns
        self._note = ""
        self._checkpoints = Checkpoints(state, f"search-{memory_name}")
        self._jobs = Jobs(bundle, session, self._checkpoints, calibrate=self._predictions, clock_ns=clock_ns)
        self._background: BackgroundJob | None = None
        self._foreground: AdaptJob | None = None
        self._asked: tuple[Take, AdaptPlan] | None = None  # of the search in the background, while it runs
        self._witness = Witness(active.gates)
        self._lock = threading.Lock()  # held for moments: which search is the present one, and to apply its result
        self._learning = threading.Lock()

    @property
    def note(self) -> str:
        """Why the last result, or the running search, could not be kept; empty where it was."""
        return self._note or self._checkpoints.note

    @property
    def running(self) -> BackgroundJob | None:
        """The search in the background; None while there is none."""
        background = self._background
        return background if background is not None and background.running else None

    def progress(self) -> AdaptStatus:
        """The present status: of the running search, else of the last one. Microseconds."""
        background, job = self.running, self._foreground
        if background is None and job is None:
            return self.status
        if job is None and background is not None:
            job = background.job
        if job is None:
            return replace(self.status, phase="calibrate", progress=0.0, changed=False, reason="a search begins")
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
        self, images: Frame, labels: Labels | None, budget: Budget, plan: AdaptPlan, tell: Callable[[AdaptStatus], None]
    ) -> AdaptStatus:
        """Search now, in this thread, and apply what was found; `tell` is called after each slice."""
        self.stop()
        before = self._active.gates
        job = self._foreground = self._job(images, labels, plan, FOREGROUND_BATCH)
        try:
            for _ in job.steps():
                tell(AdaptStatus(before, job.phase, job.progress, False, f"searching: {job.phase}"))
            with self._lock:
                return self._apply(job, budget, before)
        finally:
            self._foreground = None
            job.close()

    def start(self, take: Take, budget: Budget, plan: AdaptPlan) -> None:
        """Search in the background instead of what is searched there; `take` gives the images, and is called there."""
        before, stop = self._active.gates, Stop()
        witness = self._witness = Witness(before)

        def check() -> None:
            if stop.is_set():
                raise StoppedError

        def done(job: AdaptJob) -> None:
            with self._lock:
                if self._background is not background or stop.is_set():
                    return
                self._asked = None
                stays = self._active.gates == before
                objection = witness.objection(_result_of(job), budget) if stays else None
                if objection is None:
                    self._apply(job, budget, before)
                else:
                    self._checkpoints.remove()  # its time is used up
                    self._fail(ResourceError(objection, hint="nothing was changed; the next search measures again"))

        def failed(error: EdgeError) -> None:
            with self._lock:
                if self._background is background and not stop.is_set():
                    self._asked = None
                    self._fail(error)

        with self._lock:
            old = self._background
            if old is not None:
                old.stop()
            self.error, self._asked = None, (take, plan)
            background = self._background = BackgroundJob(
                lambda: self._job(*take(), plan, BACKGROUND_BATCH, check),
                done=done,
                failed=failed,
                duty=self._duty,
                threads=self._options.threads,
                after=old,
                pace=self.pace,
                stop=stop,
            )

    def again(self, budget: Budget) -> None:
        """The budget changed: what a search in the background finds for another is of no use, so begin it once more.

        Without a limit on the time the full subnet is what is wanted, and nothing is searched.
        """
        with self._lock:
            asked, background = self._asked, self._background
            if background is not None:
                background.stop()
            self._asked = None
        if asked is not None and budget.limits_time:
            self.start(asked[0], budget, replace(asked[1], budget=budget))

    def forget(self, gates: Gates) -> None:
        """Never go to a subnet again, nor after a restart: its outputs were unusable."""
        with self._lock:
            self._control.forget(gates)
            if self.memory is not None:
                self.memory = self.memory.without(self._control.unusable)
                self._keep()

    def wait(self, tell: Callable[[AdaptStatus], None]) -> AdaptStatus:
        """Let the search in the background, and one that takes its place, use the whole time, and wait for it.

        Raises what ended it; `tell` is called while it runs.
        """
        while (background := self.running) is not None:
            background.hurry()
            if not background.wait(TELL_SECONDS):
                tell(self.progress())
        if self.error is not None:
            raise self.error
        return self.status

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

    def _table(self, check: Check | None = None) -> LatencyModel:
        """The latency table of this machine; learned once, then remembered."""
        with self._learning:  # a search that was stopped may still be learning it
            if self.memory is None:
                with self._state.scratch() as scratch:
                    table = calibrate(
                        self._bundle, self._session, self._options, seed=self._seed, scratch=scratch, check=check
                    )
                self.memory = Memory(table)
                self._keep()
            return self.memory.table

    def observe(self, time_s: float, latency_ms: float, gates: Gates) -> None:
        """A frame was served by a subnet in so much time; frames of others than the active one say nothing of it."""
        if gates != self._active.gates:
            return
        background = self.running
        if background is not None and background.job is not None and background.job.phase == "measure":
            self._witness.add(gates, latency_ms)
        if self.memory is not None:
            self.drift.add(self.memory.table, gates, latency_ms, time_s)

    def _predictions(self, check: Check | None) -> LatencyModel:
        """The table as the machine is now."""
        table, factor = self._table(check), self.drift.factor
        return table if factor is None else table.drifted(factor)

    def _apply(self, job: AdaptJob, budget: Budget, before: Gates) -> AdaptStatus:
        """Make the chosen subnet the active one, tell the loop's control, remember it."""
        result = _result_of(job)
        measured = tuple(c.score for c in result.candidates if c.score.measured)
        self._control.learn(result.frontier, measured)
        chosen, reason = self._usable(result, budget)
        self.memory = Memory(
            self._table(), chosen, self._control.frontier, result.full_latency_ms, budget, self._full_energy_mj(result)
        )
        self._active.swap(chosen.gates, f"adapted: {reason}")
        self._keep()
        self._checkpoints.remove()
        self.status = AdaptStatus(
            active=self._active.gates,
            phase="done",
            progress=1.0,
            changed=chosen.gates != before,
            reason=reason,
            frontier=self._control.frontier,
            candidates=result.candidates,
            budget=budget,
            limit_ms=self.memory.limit_ms(budget),
            full_latency_ms=result.full_latency_ms,
            samples=job.evaluator.count,
            labelled=job.evaluator.labelled,
            seconds=job.seconds,
            taken_up=job.evaluator.taken_up,
            ended_early=result.ended_early,
            variety=job.evaluator.variety,
        )
        return self.status

    def _usable(self, result: AdaptResult, budget: Budget) -> tuple[Score, str]:
        """What was chosen, and why; where its outputs were unusable in the loop, the best of the others."""
        chosen, frontier = result.choice.score, self._control.frontier
        if chosen.gates not in self._control.unusable or frontier is None:
            return chosen, result.choice.reason
        limit_ms = budget.limit_ms(result.full_latency_ms, result.full_energy_mj)
        other = frontier.best(limit_ms) or frontier.fastest
        return other, f"{other.gates}, as outputs of {chosen.gates} were unusable in the loop"

    def _full_energy_mj(self, result: AdaptResult) -> float | None:
        """As measured in this search; else that of an earlier one at its power, in the time of this one."""
        memory = self.memory
        if result.full_energy_mj is not None or memory is None:
            return result.full_energy_mj
        if memory.full_energy_mj is None or memory.full_latency_ms is None:
            return None
        return memory.full_energy_mj * result.full_latency_ms / memory.full_latency_ms

    def _fail(self, error: EdgeError) -> None:
        """Remember why the search in the background ended without a result."""
        self.error = error
        self.status = replace(
            self.status, active=self._active.gates, phase="failed", progress=1.0, changed=False, reason=str(error)
        )

    def _keep(self) -> None:
        """Write what is known; a disk that refuses costs the cache, never the answer."""
        self._note = ""
        if self.memory is not None:
            try:
                self.memory.save(self._state, self._memory_name)
            except StateError as error:
                self._note = str(error)


def _result_of(job: AdaptJob) -> AdaptResult:
    if job.result is None:
        raise EdgeError("the search did not end", hint="run its steps to the end")
    return job.result


def _status_at_start(active: Gates, memory: Memory | None) -> AdaptStatus:
    """Before the first search of this process."""
    frontier = None if memory is None else memory.frontier
    reason = "no search was made yet" if frontier is None else "as the last search on this machine left it"
    return AdaptStatus(active, "idle", 1.0, False, reason, frontier)
