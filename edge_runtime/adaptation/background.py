"""Drives a job in one thread, quietly: low priority, a share of one CPU only, gone soon after it is told to stop.

Where the application's frames leave room between them, it works there.
"""

from __future__ import annotations

import atexit
import contextlib
import heapq
import math
import os
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Collection

from edge_runtime.adaptation.job import AdaptJob
from edge_runtime.adaptation.pace import FramePace
from edge_runtime.errors import EdgeError

__all__ = [
    "CLOSE_SECONDS",
    "BackgroundJob",
    "Stop",
    "StoppedError",
    "expected_seconds",
    "less_waited",
    "rest_seconds",
]

NICENESS = 10
"""Of the thread on Linux, where threads have their own; it then gives way to the application."""

CLOSE_SECONDS = 0.8
"""How long `close` waits for the slice that is running; a process that is told to end has 2 s for everything."""

EXIT_SECONDS = 10.0
"""How long the interpreter's end waits: a thread that comes back from a native run after it would abort the process."""

NAP_SECONDS = 0.1
"""How long the thread rests at a time; then it looks whether somebody waits for it."""

LAST_SLICES = 16
"""Of so many slices the second longest says how long the next one takes: a single one may be held up for long."""

SWITCH_SECONDS = 5e-5
"""After how long a thread asks for the interpreter while a search plans, which is Python for milliseconds at a time. A
loop of frames needs it back after each run; by Python's own 5 ms it would lose several frames' time."""

_ENDED = object()


class StoppedError(Exception):
    """Raised inside a slice that is not finished because its job was told to stop; reaches nobody."""


class Stop:
    """Told once to stop. A raw lock: an event would stay locked where a signal handler raises while it is being set."""

    def __init__(self) -> None:
        self._told = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Stop; may be told again."""
        self._told = True
        with contextlib.suppress(RuntimeError):  # released before
            self._lock.release()

    def is_set(self) -> bool:
        """Whether it was told to stop."""
        return self._told

    def wait(self, seconds: float) -> bool:
        """Wait for it, so long at most; whether it was told to stop."""
        if not self._told:
            self._lock.acquire(timeout=max(0.0, seconds))
        return self._told


class _GivingWay:
    """While a slice of at least one search runs, other threads get the interpreter soon; then as the program had it."""

    def __init__(self) -> None:
        self._lock, self._running = threading.Lock(), 0
        self._before = self._set = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._running += 1
            if self._running == 1:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, SWITCH_SECONDS))
                self._set = sys.getswitchinterval()  # as it was rounded

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._running -= 1
            if self._running == 0 and sys.getswitchinterval() == self._set:  # the program has not set its own
                sys.setswitchinterval(self._before)


_giving_way = _GivingWay()


class BackgroundJob:
    """Runs one `AdaptJob` to its end or until `close`.

    Args:
        make: Makes the job; called in the thread, so that gathering images costs the caller nothing.
        after: A job that was stopped; its end is waited for in the thread, so that two never measure at once.
        done: Called in the thread after the last slice, with the finished job; never for a job that was closed. Behind
            it the job is closed: nothing here keeps its images.
        failed: Called in the thread with what went wrong instead; never for a job that was closed.
        duty: Share of one CPU that slices may take, above 0 to 1; the thread sleeps for the rest.
        threads: Threads that work while a slice runs, this one among them.
        pace: When frames come; slices that fit between two of them are begun there. None: at any time.
        stop: Set when the job is told to stop, so that a long slice can look at it; made here where none is given.
    """

    def __init__(
        self,
        make: Callable[[], AdaptJob],
        *,
        done: Callable[[AdaptJob], None],
        failed: Callable[[EdgeError], None],
        duty: float = 0.25,
        threads: int = 1,
        after: BackgroundJob | None = None,
        pace: FramePace | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.job: AdaptJob | None = None
        """The job once it is made, and until it has ended."""
        self._done, self._failed, self._duty, self._threads = done, failed, duty, threads
        self._pace = pace or FramePace()
        self._stop = stop or Stop()
        self._makes = [make]  # taken out by the thread: it holds the images, which no traceback may keep
        self._ended = False
        # The thread drops its arguments when it ends: a job must not keep all those before it alive.
        self._thread = threading.Thread(target=self._work, args=(after,), name="nnf-edge-adapt", daemon=True)
        _STARTED.add(self)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it still works."""
        return self._thread.is_alive() and not self._ended

    def hurry(self) -> None:
        """Let it use the whole time from now on: somebody waits for it."""
        self._duty = math.inf

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end; whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Let it end after the slice that is running; returns at once."""
        self._stop.set()

    def close(self) -> None:
        """Stop after the slice that is running; returns within `CLOSE_SECONDS`, also if that slice takes longer."""
        self.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_SECONDS)

    def _work(self, after: BackgroundJob | None) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        if after is not None:
            after.wait()
        try:
            if not self._stop.is_set():
                self._search()
        except Exception as error:  # also a fault of ours must reach whoever waits, and not end on stderr
            _forget_variables(error)
            if not self._stop.is_set():
                self._failed(_as_ours(error))
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Of everything that holds images."""
        self._ended = True
        self._makes.clear()
        job, self.job = self.job, None
        if job is not None:
            job.close()

    def _search(self) -> None:
        """Make the job and run its slices, each with its rest."""
        with _giving_way:
            self.job = job = self._makes.pop()()
            slices = job.steps()
        lasted, waited = deque[float](maxlen=LAST_SLICES), 0.0
        while True:
            waited += self._await_gap(expected_seconds(lasted))
            if self._stop.is_set():
                return
            began, cpu = time.perf_counter(), _cpu_seconds(self._threads)
            with _giving_way:
                ended = next(slices, _ENDED) is _ENDED
            if ended:
                break
            busy, spent = time.perf_counter() - began, _cpu_seconds(self._threads) - cpu
            lasted.append(busy)
            owed, waited = less_waited(rest_seconds(busy, spent, self._duty, self._threads), waited)
            if self._rest(owed):
                return
        if not self._stop.is_set():
            self._done(job)

    def _await_gap(self, needed: float) -> float:
        """Wait until a slice that takes `needed` disturbs no frame; gives the seconds waited, which count as rest."""
        began = now = time.perf_counter()
        while self._duty < math.inf and (nap := self._pace.nap_s(now, needed, began)) > 0:
            if self._stop.wait(min(nap, NAP_SECONDS)):
                break
            now = time.perf_counter()
        return now - began

    def _rest(self, seconds: float) -> bool:
        """Sleep until then, until somebody waits for the job, or until it is told to stop; whether it was."""
        until = time.perf_counter() + seconds
        while self._duty < math.inf and (left := until - time.perf_counter()) > 0:
            if self._stop.wait(min(left, NAP_SECONDS)):
                break
        return self._stop.is_set()


def expected_seconds(lasted: Collection[float]) -> float:
    """How long the next slice should take at most, by how long the last ones `lasted`; 0 where nothing is known yet."""
    return heapq.nlargest(2, lasted)[-1] if lasted else 0.0


def rest_seconds(busy: float, cpu: float, duty: float, threads: int) -> float:
    """Seconds to sleep after a slice, so that it and the sleep together take a share of one CPU.

    Args:
        busy: how long the slice lasted, seconds.
        cpu: CPU seconds that it took; those of `threads` during `busy` at most.
        duty: the share, above 0; infinite for no rest.
        threads: threads that work while a slice runs.
    """
    return max(0.0, min(cpu, threads * busy) / duty - busy)


def less_waited(rest: float, waited: float) -> tuple[float, float]:
    """Seconds still to rest after what was waited for room, and what is left of the wait for the next rest.

    At most `NAP_SECONDS` are left, so that a long wait is not followed by a long time without any rest.
    """
    return max(0.0, rest - waited), min(max(0.0, waited - rest), NAP_SECONDS)


def _cpu_seconds(threads: int) -> float:
    """CPU seconds of this thread so far and of as many others that work when it does, and of child processes.

    Planning is of this thread alone and counts for all of them, so a search takes its share at most.
    """
    times = os.times()
    return threads * time.thread_time() + times.children_user + times.children_system


_STARTED: weakref.WeakSet[BackgroundJob] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Also a program that closes nothing ends with its own exit code."""
    started = list(_STARTED)
    for job in started:
        job.stop()
    for job in started:
        job.wait(EXIT_SECONDS)


def _forget_variables(error: BaseException | None) -> None:
    """Empty the frames that an error came through: whoever keeps it must not keep the images."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _as_ours(error: Exception) -> EdgeError:
    if isinstance(error, EdgeError):
        return error
    ours = EdgeError(f"the search broke off: {type(error).__name__}: {error}", hint="report this with its traceback")
    ours.__cause__ = error
    return ours
