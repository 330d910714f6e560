from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from edge_runtime.adaptation.background import BackgroundJob, _cpu_seconds, rest_seconds
from edge_runtime.errors import BackendError, BudgetError, EdgeError


class Slices:
    """A stand-in for a job: counts its slices, waits for nothing."""

    def __init__(self, slices: int, error: Exception | None = None) -> None:
        self.slices, self.error, self.ran = slices, error, 0
        self.began, self.ended = threading.Event(), threading.Event()

    def close(self) -> None:
        """Nothing is open."""

    def steps(self) -> Iterator[None]:
        self.began.set()
        try:
            for _ in range(self.slices):
                self.ran += 1
                yield
            if self.error:
                raise self.error
        finally:
            self.ended.set()


def background(job: Any, duty: float = 1.0) -> tuple[BackgroundJob, list[Any], list[EdgeError]]:
    done: list[Any] = []
    failed: list[EdgeError] = []
    return BackgroundJob(lambda: job, done=done.append, failed=failed.append, duty=duty), done, failed


def test_a_background_job_runs_to_its_end() -> None:
    job = Slices(5)
    thread, done, failed = background(job)
    assert thread.wait(30)
    assert (job.ran, done, failed) == (5, [job], [])
    assert not thread.running


class Watching(Slices):
    """Slices that note after how long a thread asks for the interpreter."""

    def __init__(self, slices: int) -> None:
        super().__init__(slices)
        self.intervals: list[float] = []

    def steps(self) -> Iterator[None]:
        for _ in super().steps():
            self.intervals.append(sys.getswitchinterval())
            yield


def test_other_threads_ask_for_the_interpreter_soon_while_a_search_runs_and_not_while_it_rests() -> None:
    before = sys.getswitchinterval()
    jobs = [Watching(20), Watching(20)]
    threads = [background(job)[0] for job in jobs]
    assert all(thread.wait(30) for thread in threads)
    assert max(jobs[0].intervals + jobs[1].intervals) < before / 10
    assert sys.getswitchinterval() == before
    resting = Burning(2)
    thread, _, _ = background(resting, duty=0.001)
    until = time.monotonic() + 30
    while sys.getswitchinterval() == before and time.monotonic() < until:  # its first slice
        pass
    while sys.getswitchinterval() != before and time.monotonic() < until:  # now it rests for seconds
        pass
    assert time.monotonic() < until
    assert thread.running
    thread.close()


def test_an_interval_that_the_program_sets_meanwhile_stays() -> None:
    before = sys.getswitchinterval()
    try:
        thread, _, _ = background(Setting())
        assert thread.wait(30)
        assert sys.getswitchinterval() == pytest.approx(2e-5)
    finally:
        sys.setswitchinterval(before)


class Setting(Slices):
    """A slice in which the program sets its own interval."""

    def __init__(self) -> None:
        super().__init__(1)

    def steps(self) -> Iterator[None]:
        sys.setswitchinterval(2e-5)
        yield


def test_a_background_job_that_fails_says_why() -> None:
    thread, done, failed = background(Slices(2, BudgetError("too slow")))
    assert thread.wait(30)
    assert done == []
    assert [str(error) for error in failed] == ["too slow"]


def test_closing_ends_a_background_job_between_two_slices() -> None:
    job = Slices(10**9)
    thread, done, failed = background(job, duty=0.01)
    assert job.began.wait(30)
    thread.close()
    assert thread.wait(30)
    assert job.ended.wait(30)
    assert (done, failed) == ([], [])


def test_an_error_after_closing_is_nobodys_business() -> None:
    gate = threading.Event()

    def wait_then_fail() -> Iterator[None]:
        gate.wait(30)
        raise BackendError("the session is closed")
        yield

    job = Slices(0)
    job.steps = wait_then_fail  # type: ignore[method-assign]
    thread, done, failed = background(job)
    thread._stop.set()
    gate.set()
    assert thread.wait(30)
    assert (done, failed) == ([], [])


def test_a_job_that_is_stopped_before_it_began_is_never_made() -> None:
    first, second, made = Slices(10**9), Slices(1), threading.Event()
    before, _, _ = background(first)

    def make() -> Any:
        made.set()
        return second

    thread = BackgroundJob(make, done=print, failed=print, after=before)
    thread.stop()
    assert before.running
    before.close()
    assert thread.wait(30)
    assert not made.is_set()


def test_closing_in_the_last_slice_drops_what_was_found() -> None:
    began, gate = threading.Event(), threading.Event()

    def last_slice() -> Iterator[None]:
        began.set()
        gate.wait(30)
        yield from ()

    job = Slices(0)
    job.steps = last_slice  # type: ignore[method-assign]
    thread, done, failed = background(job)
    assert began.wait(30)
    thread._stop.set()
    gate.set()
    assert thread.wait(30)
    assert (done, failed) == ([], [])


def test_a_fault_of_ours_reaches_whoever_waits() -> None:
    thread, done, failed = background(Slices(2, ZeroDivisionError("by zero")))  # type: ignore[arg-type]
    assert thread.wait(30)
    assert done == []
    assert "ZeroDivisionError: by zero" in str(failed[0])


@pytest.mark.parametrize(
    ("busy", "cpu", "duty", "threads", "rest"),
    [
        (0.02, 0.02, 0.25, 1, 0.06),
        (0.02, 0.04, 0.25, 2, 0.14),  # two threads of a slice take twice the CPU
        (0.04, 0.02, 0.25, 1, 0.04),  # where others hold the CPU it was given up already
        (0.02, 0.50, 0.25, 1, 0.06),  # never for more than its threads can take
        (0.05, 0.00, 0.25, 1, 0.0),
        (0.02, 0.04, math.inf, 2, 0.0),
    ],
)
def test_a_slice_and_its_rest_take_a_share_of_one_cpu(
    busy: float, cpu: float, duty: float, threads: int, rest: float
) -> None:
    assert rest_seconds(busy, cpu, duty, threads) == pytest.approx(rest)


class Waiting(Slices):
    """Slices that take no CPU."""

    def steps(self) -> Iterator[None]:
        for _ in range(self.slices):
            time.sleep(0.02)
            yield


class Burning(Slices):
    """Slices that take CPU."""

    def steps(self) -> Iterator[None]:
        for _ in range(self.slices):
            until = time.thread_time() + 0.02
            while time.thread_time() < until:
                pass
            yield


def pauses_of(job: Any, *, hurried: bool = False) -> list[float]:
    """How long a background job of a hundredth of a CPU wants to rest after each slice; it does not really rest."""
    pauses: list[float] = []
    began = threading.Event()

    def make() -> Any:
        began.wait(30)
        return job

    thread = BackgroundJob(make, done=print, failed=print, duty=0.01)
    thread._rest = pauses.append  # type: ignore[method-assign,assignment]
    if hurried:
        thread.hurry()
    began.set()
    assert thread.wait(30)
    return pauses


def test_a_job_rests_for_the_cpu_that_it_took_unless_somebody_waits_for_it() -> None:
    pauses = pauses_of(Burning(4))
    assert len(pauses) == 4
    assert min(pauses) > 0
    assert pauses_of(Burning(4), hurried=True) == [0.0] * 4
    assert sum(pauses_of(Waiting(4))) < sum(pauses) / 4


def test_a_rest_ends_when_somebody_waits_for_the_job() -> None:
    thread, done, _ = background(Burning(3), duty=0.001)  # 20 s of rest after each slice
    assert not thread.wait(0.3)
    thread.hurry()
    assert thread.wait(10)
    assert len(done) == 1


def test_the_cpu_of_a_slice_counts_for_all_threads_that_work() -> None:
    before = _cpu_seconds(1), _cpu_seconds(3)
    for _ in Burning(5).steps():
        pass
    one, three = (_cpu_seconds(threads) - was for threads, was in zip((1, 3), before, strict=True))
    assert one >= 0.1
    assert three == pytest.approx(3 * one, rel=0.1)
