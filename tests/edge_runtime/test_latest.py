"""The one background thread that makes what is wanted now."""

from __future__ import annotations

import threading
import time
from unittest import mock

from edge_runtime.backends.onnx import latest
from edge_runtime.backends.onnx.latest import Latest

LONG_SECONDS = 30


def threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def wait_until(what: object) -> None:
    deadline = time.monotonic() + LONG_SECONDS
    while not what() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.002)
    assert what()  # type: ignore[operator]


def test_only_the_newest_of_what_waits_is_done() -> None:
    done: list[int] = []
    began, go_on = threading.Event(), threading.Event()

    def do(item: int) -> None:
        began.set()
        assert go_on.wait(LONG_SECONDS)
        done.append(item)

    worker = Latest("newest", do)
    worker.ask(1)
    assert began.wait(LONG_SECONDS)
    for item in (2, 3, 4):
        worker.ask(item)
    go_on.set()
    wait_until(lambda: len(done) == 2)
    assert done == [1, 4]
    assert threads("newest") == 1


def test_the_thread_ends_when_nothing_is_asked_for_and_comes_back() -> None:
    done: list[int] = []
    with mock.patch.object(latest, "IDLE_SECONDS", 0.01):
        worker = Latest("idle", done.append)
        for item in range(3):
            worker.ask(item)
            wait_until(lambda: threads("idle") == 0)
    assert done == [0, 1, 2]


def test_after_stop_nothing_more_is_done() -> None:
    done: list[int] = []
    began, go_on = threading.Event(), threading.Event()

    def do(item: int) -> None:
        began.set()
        assert go_on.wait(LONG_SECONDS)
        done.append(item)

    worker = Latest("stopped", do)
    worker.ask(1)
    assert began.wait(LONG_SECONDS)
    worker.ask(2)
    with mock.patch.object(latest, "STOP_SECONDS", 0.01):
        worker.stop()
    worker.ask(3)
    go_on.set()
    wait_until(lambda: threads("stopped") == 0)
    assert done == [1]


def test_nothing_is_lost_where_a_thread_cannot_be_started() -> None:
    done: list[int] = []
    worker = Latest("scarce", done.append)
    with mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
        worker.ask(1)
    worker.ask(2)
    wait_until(lambda: done == [2])
    worker.stop()


def test_stop_leaves_no_thread_behind() -> None:
    worker = Latest("short", lambda item: time.sleep(0.05))
    worker.ask(1)
    worker.stop()
    assert threads("short") == 0


def test_it_rests_once_when_nothing_more_is_asked_for() -> None:
    said: list[str] = []
    with mock.patch.object(latest, "IDLE_SECONDS", 0.05):
        worker = Latest("resting", said.append, lambda: said.append("rest"))
        worker.ask("one")
        wait_until(lambda: "one" in said)
        worker.ask("two")
        wait_until(lambda: threads("resting") == 0)
    assert said == ["one", "two", "rest"]
