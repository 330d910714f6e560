"""A program whose signal handlers raise, as Ctrl-C does: wherever it is hit, its model still closes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.tiny import tiny_bundle

PROGRAM = """
import signal, sys, time
import numpy as np
from edge_runtime import EdgeModel

class Hit(BaseException):
    pass

def hit(number, frame):
    raise Hit

signal.signal(signal.SIGALRM, hit)
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
