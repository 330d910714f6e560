from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import Budget, EdgeModel
from edge_runtime.adaptation.background import BackgroundJob
from edge_runtime.adaptation.pace import LATE, LEAST_NAP_SECONDS, FramePace
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


@given(st.floats(0.005, 1.0), shares, shares, st.floats(2.0, 20.0))
def test_what_fits_between_two_frames_overlaps_none_and_waits_for_one_at_most(
    period: float, busy: float, needs: float, at: float
) -> None:
    camera = Camera(period, busy * period)
    camera.pass_time(at * period)
    asked, needed = camera.now, needs * (1 - busy) * period - 2 * LEAST_NAP_SECONDS
    began = camera.begin(max(needed, 0.0))
    assert began - asked <= period + LEAST_NAP_SECONDS
    if needed > 0:
        moments = np.linspace(began + 1e-6, began + needed - 1e-6, 50)
        assert not any(camera.in_a_frame(moment) for moment in moments)


@given(st.floats(0.005, 1.0), shares, st.floats(1.0, 50.0), st.floats(2.0, 20.0))
def test_what_fits_nowhere_begins_just_after_a_frame(period: float, busy: float, periods: float, at: float) -> None:
    camera = Camera(period, busy * period)
    camera.pass_time(at * period)
    began = camera.begin(periods * period)
    since_the_last = (began - camera.ended(0)) % period
    assert min(since_the_last, period - since_the_last) <= LEAST_NAP_SECONDS + 1e-6


@pytest.mark.parametrize("frames", [0, 1])
def test_without_two_frames_nothing_is_waited_for(frames: int) -> None:
    camera = Camera(0.02, 0.005, frames)
    camera.pass_time(0.1)
    assert camera.begin(1.0) == camera.now == 0.1


def test_frames_that_stopped_are_waited_for_once() -> None:
    camera = Camera(0.02, 0.005, frames=5)
    camera.pass_time(0.086)  # just after the fifth
    assert camera.begin(1.0) == pytest.approx(0.1 + 0.005 + LATE * 0.02, abs=2 * LEAST_NAP_SECONDS)
    camera.pass_time(1.0)
    asked = camera.now
    assert camera.begin(1.0) == asked


def test_two_loops_whose_frames_cross_hold_nothing_up() -> None:
    pace = FramePace()
    pace.frame(1.0, 1.5)
    pace.frame(0.9, 1.6)  # began before the other one
    assert pace.nap_s(2.0, 1.0, 2.0) == 0.0


class Slices:
    def __init__(self, count: int) -> None:
        self.ran, self._count = 0, count

    def steps(self) -> Iterator[None]:
        for _ in range(self._count):
            self.ran += 1
            yield


def waiting_for_a_frame() -> tuple[Slices, BackgroundJob]:
    """A job that waits for the end of a frame which takes a quarter of an hour."""
    pace, now, job = FramePace(), time.perf_counter(), Slices(3)
    pace.frame(now - 2000.0, now - 1990.0)
    pace.frame(now - 1000.0, now)
    made: Any = lambda: job  # noqa: E731
    return job, BackgroundJob(made, done=print, failed=print, pace=pace)


def test_a_search_that_waits_for_a_frame_ends_when_it_is_told_to() -> None:
    job, thread = waiting_for_a_frame()
    thread.stop()
    assert thread.wait(30)
    assert job.ran == 0


def test_a_search_that_somebody_waits_for_waits_for_no_frame() -> None:
    job, thread = waiting_for_a_frame()
    thread.hurry()
    assert thread.wait(30)
    assert job.ran == 3


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
