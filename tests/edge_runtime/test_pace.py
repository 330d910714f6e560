from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import Budget, EdgeModel
from edge_runtime.adaptation.background import NAP_SECONDS, BackgroundJob, expected_seconds, less_waited
from edge_runtime.adaptation.pace import LEAST_NAP_SECONDS, PATIENCE, FramePace
from edge_runtime.cli.assets import demo_bundle


class Camera:
    """A virtual clock, and a loop that answers a frame at each multiple of a period."""

    def __init__(self, period: float, took: float, frames: int = 10**6) -> None:
        self.pace, self.now = FramePace(), 0.0
        self._period, self._took, self._frames, self._told = period, took, frames, 0

    def pass_time(self, seconds: float) -> None:
        """Tell the pace of all frames that ended until then."""
        self.now += seconds
        while self._told < self._frames and self.ended(self._told) <= self.now:
            self.pace.frame(self._told * self._period, self.ended(self._told))
            self._told += 1

    def ended(self, number: int) -> float:
        return number * self._period + self._took

    def begin(self, needed: float) -> float:
        """When something that takes `needed` may begin, as `BackgroundJob` asks for it."""
        since = self.now
        while (nap := self.pace.nap_s(self.now, needed, since)) > 0:
            self.pass_time(nap)
        return self.now

    def in_a_frame(self, moment: float) -> bool:
        return moment % self._period < self._took


shares = st.floats(0.01, 0.9)
periods = st.floats(0.005, 1.0)
moments = st.floats(2.0, 20.0)


@given(periods, shares, shares, moments)
def test_what_fits_between_two_frames_overlaps_none_unless_it_has_waited_enough(
    period: float, busy: float, needs: float, at: float
) -> None:
    camera = Camera(period, busy * period)
    camera.pass_time(at * period)
    asked, needed = camera.now, max(needs * (1 - busy) * period - 2 * LEAST_NAP_SECONDS, 0.0)
    began = camera.begin(needed)
    waited = began - asked
    assert waited <= min(period, PATIENCE * needed) + 1e-6
    if needed > 0 and waited < PATIENCE * needed - 1e-6:
        inside = np.linspace(began + 1e-6, began + needed - 1e-6, 50)
        assert not any(camera.in_a_frame(moment) for moment in inside)


def test_a_slice_waits_for_the_frame_that_is_due_and_no_longer() -> None:
    camera = Camera(0.020, 0.002)
    camera.pass_time(0.0570)  # 3 ms before the next frame
    assert camera.begin(0.006) == pytest.approx(0.062, abs=2 * LEAST_NAP_SECONDS)
    camera.pass_time(0.001)
    assert camera.begin(0.006) == pytest.approx(0.063, abs=2 * LEAST_NAP_SECONDS)


@given(periods, shares, st.floats(1.0, 50.0), moments)
def test_what_fits_nowhere_begins_at_once(period: float, busy: float, needs: float, at: float) -> None:
    camera = Camera(period, busy * period)
    camera.pass_time(at * period)
    asked = camera.now
    assert camera.begin(needs * period) == asked


@pytest.mark.parametrize("frames", [0, 1])
def test_without_two_frames_nothing_is_waited_for(frames: int) -> None:
    camera = Camera(0.02, 0.005, frames)
    camera.pass_time(0.1)
    assert camera.begin(1.0) == camera.now == 0.1


def test_frames_that_stopped_are_waited_for_no_longer_than_the_slice_is_worth() -> None:
    camera = Camera(0.02, 0.005, frames=5)
    camera.pass_time(0.1)
    assert camera.begin(0.005) == pytest.approx(0.1 + PATIENCE * 0.005)
    camera.pass_time(0.02)
    asked = camera.now
    assert camera.begin(0.005) == asked


def test_two_loops_whose_frames_cross_hold_nothing_up() -> None:
    pace = FramePace()
    pace.frame(1.0, 1.5)
    pace.frame(0.9, 1.6)  # began before the other one
    assert pace.nap_s(2.0, 0.1, 2.0) == 0.0


@pytest.mark.parametrize(
    ("rest", "waited", "owed", "left"),
    [
        (0.5, 0.0, 0.5, 0.0),
        (0.5, 0.2, 0.3, 0.0),
        (0.05, 0.08, 0.0, 0.03),
        (0.05, 9.0, 0.0, NAP_SECONDS),
        (0.0, 0.0, 0.0, 0.0),
    ],
)
def test_what_was_waited_is_no_longer_to_be_rested(rest: float, waited: float, owed: float, left: float) -> None:
    assert less_waited(rest, waited) == pytest.approx((owed, left))


@pytest.mark.parametrize(
    ("lasted", "expected"),
    [([], 0.0), ([0.003], 0.003), ([0.004, 0.003], 0.003), ([0.002, 0.005, 0.003, 0.05, 0.004], 0.005)],
)
def test_a_slice_is_expected_to_last_as_long_as_most_but_not_as_one_that_planned(
    lasted: list[float], expected: float
) -> None:
    assert expected_seconds(lasted) == expected


class Uneven:
    """Slices in turns short and long."""

    def close(self) -> None:
        """Nothing is open."""

    def steps(self) -> Iterator[None]:
        for seconds in (1e-3, 1e-2) * 12:
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                pass
            yield


def test_room_is_asked_for_the_longer_of_uneven_slices() -> None:
    asked: list[float] = []

    class Noting(FramePace):
        def nap_s(self, now_s: float, needed_s: float, since_s: float) -> float:
            asked.append(needed_s)
            return 0.0

    made: Any = lambda: Uneven()  # noqa: E731
    assert BackgroundJob(made, done=print, failed=print, duty=1.0, pace=Noting()).wait(30)
    assert min(asked[6:]) >= 1e-2


class RestNoting(BackgroundJob):
    """Rests at no time, and notes for how long it should have."""

    def __init__(self, **arguments: Any) -> None:
        self.rests: list[float] = []
        super().__init__(**arguments)

    def _rest(self, seconds: float) -> bool:
        self.rests.append(seconds)
        return False

    def _await_gap(self, needed: float) -> float:
        return 1000.0 if needed else 0.0


def test_a_search_does_not_rest_again_after_it_has_waited_for_room() -> None:
    job = Slices()
    made: Any = lambda: job  # noqa: E731
    thread = RestNoting(make=made, done=print, failed=print, duty=1e-3)
    assert thread.wait(30)
    first, second = thread.rests
    assert first > 0 == second


class Slices:
    """Two slices; each takes a while, so that the second one needs room."""

    def __init__(self) -> None:
        self.ran = 0

    def close(self) -> None:
        """Nothing is open."""

    def steps(self) -> Iterator[None]:
        for _ in range(2):
            self.ran += 1
            until = time.thread_time() + 0.01
            while time.thread_time() < until:
                pass
            yield


class NeverFree(FramePace):
    """There is no room for anything but the first slice, ever."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def nap_s(self, now_s: float, needed_s: float, since_s: float) -> float:
        if needed_s:
            self.asked.set()
        return 1000.0 if needed_s else 0.0


def waiting_for_room() -> tuple[Slices, BackgroundJob]:
    job, pace = Slices(), NeverFree()
    made: Any = lambda: job  # noqa: E731
    thread = BackgroundJob(made, done=print, failed=print, pace=pace)
    assert pace.asked.wait(30)
    return job, thread


def test_a_search_that_waits_for_room_ends_when_it_is_told_to() -> None:
    job, thread = waiting_for_room()
    thread.stop()
    assert thread.wait(30)
    assert job.ran == 1


def test_a_search_that_somebody_waits_for_waits_for_no_room() -> None:
    job, thread = waiting_for_room()
    thread.hurry()
    assert thread.wait(30)
    assert job.ran == 2


def test_a_search_in_the_background_knows_of_the_frames_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    periods: list[float | None] = []

    def nap_s(pace: FramePace, now_s: float, needed_s: float, since_s: float) -> float:
        periods.append(pace._last and pace._last.period)
        return 0.0

    monkeypatch.setattr(FramePace, "nap_s", nap_s)
    frame = np.zeros((64, 64, 3), np.uint8)
    image = np.zeros((1, 3, 64, 64), np.float32)
    with EdgeModel.load(demo_bundle(), budget=Budget(fraction=0.6), state_dir=None) as model:
        model(frame)
        model.infer(image)
        model.adapt(np.random.default_rng(0).integers(0, 256, (32, 64, 64, 3), np.uint8))
        deadline = time.monotonic() + 60
        while not periods and time.monotonic() < deadline:
            time.sleep(0.01)
    assert periods
    assert periods[0] is not None
    assert 0 < periods[0] < 60
