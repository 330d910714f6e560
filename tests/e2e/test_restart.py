"""Processes that are told to end, or are killed, in the middle of a search; and what the next one makes of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.adaptation.checkpoint import Checkpoint, Checkpoints
from edge_runtime.state import StateDir
from tests.support.tiny import SPACE, tiny_bundle

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120

APPLICATION = """
import sys
import time
from contextlib import nullcontext
import numpy as np
import edge_runtime.measure.calibrate
from edge_runtime import Budget, EdgeModel
from edge_runtime.command import run_command

bundle, images, state, closing, moment = sys.argv[1:]
if moment == "calibrate":
    sys.modules["edge_runtime.measure.calibrate"].CHECK_PARTS = (10_000, 10_000)

def run(words):
    frames = np.load(images)["images"]
    model = EdgeModel.load(bundle, state_dir=state, budget=Budget(fraction=0.6), threads=1)
    globals()["kept"] = model  # the interpreter's end finds it open, unless it is closed
    with model if closing == "closing" else nullcontext():
        model.adapt(frames, seconds=600)
        while model.adapt().phase != moment:
            time.sleep(0.001)
        print("now", flush=True)
        while True:
            model(frames[0])

sys.exit(run_command("application", run, None))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("bundle") / "tiny.nnf"
    tiny_bundle(where)
    return where


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(where, images=np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8))
    return where


def start(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kept(state: Path) -> Checkpoint | None:
    found = [Checkpoints(StateDir.open(state), path.name).read(SPACE) for path in state.glob("search-*.json")]
    return found[0] if found else None


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_adapt_that_is_ended_goes_on_at_the_next_call(
    bundle: Path, images: Path, tmp_path: Path, number: signal.Signals
) -> None:
    state = tmp_path / "state"
    words = ["-m", "edge_runtime.cli", "adapt", bundle, "--data", images, "--budget", "60%", "--state-dir", state]
    process = start(*words)
    wait_for(lambda: state.exists() and bool((found := kept(state)) and found.values), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (out, err) == ("", "")
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)

    report = tmp_path / "report.json"
    again = start(*words, "--json", report)
    out, err = again.communicate(timeout=PATIENCE_SECONDS)
    assert again.returncode == 0, err
    result = json.loads(report.read_text())["result"]
    assert result["taken_up"] > 0
    assert f"{result['taken_up']} of its evaluations are from before a restart" in out
    assert kept(state) is None


@pytest.mark.parametrize("closing", ["closing", "leaving it open"])
@pytest.mark.parametrize("moment", ["calibrate", "search", "measure"])
def test_a_program_that_searches_in_the_background_ends_by_sigterm_with_its_own_code(
    bundle: Path, images: Path, tmp_path: Path, closing: str, moment: str
) -> None:
    process = start("-c", APPLICATION, bundle, images, tmp_path / "state", closing, moment)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, err) == (143, "")
    assert list((tmp_path / "state").glob("scratch-*")) == []


def test_kills_at_random_moments_lose_little_and_change_nothing() -> None:
    words = ["--kills", 5, "--images", 64, "--measure-seconds", 0.2]
    process = start(ROOT / "tools/bench/search_kills.py", *words)
    out, err = process.communicate(timeout=10 * PATIENCE_SECONDS)
    assert process.returncode == 0, (out, err)
    result = json.loads(out.splitlines()[-1])
    assert result["failures"] == []
    assert result["kills"] == 5
    assert result["loads"] == result["kills"] + result["searches"]
    assert result["active_unchanged"] + result["ended_before_the_kill"] == result["loads"]
    assert result["from_checkpoint"] > 0
    assert result["compared_values"] > 1000
    assert result["repeated_images"] == result["other_values"] == 0
    assert 0.95 * result["evaluated_subnets"] <= result["evaluated_there_too"]
