"""The one background thread that makes what is wanted now."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from unittest import mock

import pytest

from edge_runtime.backends.onnx import latest
from edge_runtime.backends.onnx.latest import Latest

LONG_SECONDS = 30
NAME = "latest-of-test"


class Worker:
    """Does what it is asked for when it may, and says what it did."""

    def __init__(self, *, waits: bool = False, fails: int = 0, rest: Callable[[], object] = lambda: None) -> None:
        self.done: list[object] = []
        self.began, self.go_on = threading.Event(), threading.Event()
        self._waits, self._fails = waits, fails
        self.latest: Latest[object] = Latest(NAME, self.do, rest)

    def do(self, item: object) -> None:
        self.began.set()
        if self._waits:
            assert self.go_on.wait(LONG_SECONDS)
        if len(self.done) < self._fails:
            self.done.append("failed")
            raise MemoryError
        self.done.append(item)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with mock.patch.object(latest, "IDLE_SECONDS", 0.05):
        yield
        wait_until(lambda: threads() == 0)


def threads() -> int:
    return sum(thread.name == NAME for thread in threading.enumerate())


def wait_until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG_SECONDS
    while not what() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert what()


def test_only_the_newest_of_what_waits_is_done() -> None:
    worker = Worker(waits=True)
    worker.latest.ask(1)
    assert worker.began.wait(LONG_SECONDS)
    for item in (2, 3, 4):
        worker.latest.ask(item)
    worker.go_on.set()
    wait_until(lambda: len(worker.done) == 2)
    assert worker.done == [1, 4]
    assert threads() <= 1


def test_the_thread_ends_when_nothing_is_asked_for_and_comes_back() -> None:
    worker = Worker()
    for item in range(3):
        worker.latest.ask(item)
        wait_until(lambda: threads() == 0)
    assert worker.done == [0, 1, 2]


def test_after_stop_nothing_more_is_done() -> None:
    worker = Worker(waits=True)
    worker.latest.ask(1)
    assert worker.began.wait(LONG_SECONDS)
    worker.latest.ask(2)
    with mock.patch.object(latest, "STOP_SECONDS", 0.01):
        worker.latest.stop()
    worker.latest.ask(3)
    worker.go_on.set()
    wait_until(lambda: threads() == 0)
    assert worker.done == [1]


def test_stop_waits_for_the_thread() -> None:
    worker = Worker()
    worker.latest.ask(1)
    worker.latest.stop()
    assert threads() == 0


def test_what_no_thread_can_be_started_for_is_dropped_and_the_next_is_done() -> None:
    worker = Worker()
    with mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
        worker.latest.ask(1)
    worker.latest.ask(2)
    wait_until(lambda: worker.done == [2])


def test_what_fails_does_not_end_the_thread() -> None:
    worker = Worker(fails=1)
    for item in (1, 2):
        worker.latest.ask(item)
        wait_until(lambda wanted=item: len(worker.done) == wanted)
    assert worker.done == ["failed", 2]


def test_it_rests_once_when_nothing_more_is_asked_for() -> None:
    said: list[str] = []
    worker = Worker(rest=lambda: said.append("rest"))
    worker.latest.ask("one")
    wait_until(lambda: worker.done == ["one"])
    worker.latest.ask("two")
    wait_until(lambda: threads() == 0)
    assert worker.done == ["one", "two"]
    assert said == ["rest"]


def test_what_it_works_for_is_freed_without_the_collector() -> None:
    gc.disable()
    try:
        worker: Worker | None = Worker()
        done = worker.done
        worker.latest.ask(1)
        wait_until(lambda: done == [1])
        gone = weakref.ref(worker)
        worker = None
        wait_until(lambda: gone() is None)
    finally:
        gc.enable()
