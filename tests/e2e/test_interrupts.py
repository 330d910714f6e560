"""A program whose signal handlers raise, as Ctrl-C does: wherever it is hit, its model still closes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from edge_runtime.adaptation.background import Stop
from tests.support.tiny import tiny_bundle

HANDLER = """
import signal, sys, time

class Hit(BaseException):
    pass

def hit(number, frame):
    raise Hit

signal.signal(signal.SIGALRM, hit)
"""

PROGRAM = (
    HANDLER
    + """
import numpy as np
from edge_runtime import EdgeModel

frame = np.zeros((16, 16, 3), np.uint8)
model = EdgeModel.load(sys.argv[1], state_dir=sys.argv[2], threads=1)
subnets = [model.space.default, model.space.default.replace(0, 1)]
hits, until = 0, time.monotonic() + 3
while time.monotonic() < until:
    try:
        signal.setitimer(signal.ITIMER_REAL, 2e-4 + 1e-6 * (hits % 997), 0)
        while True:
            model(frame)
            model.swap(subnets[hits % 2])
    except Hit:
        hits += 1
signal.setitimer(signal.ITIMER_REAL, 0)
model.close()
print(hits)
"""
)


def test_a_model_closes_whatever_a_signal_handler_interrupted(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny.nnf").source
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(bundle), str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 100


STOPS = (
    HANDLER
    + """
from edge_runtime.adaptation.background import Stop

hits, until = 0, time.monotonic() + 2
while time.monotonic() < until:
    stops = []
    try:
        signal.setitimer(signal.ITIMER_REAL, 5e-5 + 1e-7 * (hits % 997), 0)
        while True:
            stops.append(Stop())
            stops[-1].set()
    except Hit:
        hits += 1
    for stop in stops[-2:]:
        stop.set()
        assert stop.wait(5) and stop.is_set()
print(hits)
"""
)


def test_a_stop_can_be_told_again_whatever_a_signal_handler_interrupted() -> None:
    ran = subprocess.run([sys.executable, "-c", STOPS], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 100


def test_a_stop_wakes_who_waits_for_it() -> None:
    stop, woken = Stop(), threading.Event()
    thread = threading.Thread(target=lambda: (stop.wait(30), woken.set()))
    thread.start()
    assert not stop.wait(0.01)
    stop.set()
    assert woken.wait(10)
    thread.join()
