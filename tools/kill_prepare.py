"""Kill -9 at random moments while a bundle is prepared on this machine; each next load must be as if nothing had been.

Each turn starts a process that loads the bundle with a state directory in which the prepared form is missing or
damaged, and kills at a seeded moment the whole process group, the preparing child alone, or its parent alone. Then a
new process loads with the same state directory: it must serve the prepared form, answer bit for bit as an undisturbed
load did, and leave nothing else behind. Half of the moments are drawn evenly over the time that preparing takes; the
others lie within 30 ms after a file appears. The last line of output is one JSON object; exit code 1 on any failure.

    python tools/kill_prepare.py [--kills 200] [--workers 2] [--log FILE [--seconds 200]] [--json FILE]

With `--log` a later call goes on where this one was stopped. Nothing is timed, so other work may run beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from edge_runtime import sense
from edge_runtime.backends import runtime_versions

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "edge_runtime/assets/demo.nnf"
TARGETS = ("group", "child", "parent")
PHASES = ("nothing written", "tensors written", "graph written", "record written", "named")
"""What is there at the kill; `graph written` is rewriting, comparing and timing, `named` is after the rename."""

PREPARED_FILES = {"record.json", "skeleton.onnx", "tensors.bin"}
WITHIN_SECONDS = 0.03
POLL_SECONDS = 0.0005
PATIENCE_SECONDS = 120.0

LOADER = """
import hashlib, json, sys
from edge_runtime import Budget, EdgeModel
from edge_runtime.backends.base import random_inputs
from edge_runtime.seeds import covering_vectors
with EdgeModel.load(sys.argv[1], state_dir=sys.argv[2] or None, budget=Budget(), threads=1) as model:
    space, manifest = model.space, model.bundle.manifest
    answers = hashlib.sha256()
    for number, gates in enumerate([space.default, *covering_vectors(space)]):
        (image,) = random_inputs(manifest.inputs, seed=number).values()
        for name, values in sorted(model.infer(image, gates).items()):
            answers.update(name.encode() + values.tobytes())
    print(json.dumps({"backend": model.stats().backend, "form": model.stats().form, "answers": answers.hexdigest()}))
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """One kill and what came of it."""

    number: int
    target: str
    before: str
    """`missing` or `damaged`: the prepared form when the process began."""

    phase: str
    moment_s: float
    """From the first sign of preparing to the kill, seconds."""

    identical: bool
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """An undisturbed load, and one that may keep nothing."""

    prepared: dict[str, str]
    portable: dict[str, str]
    seconds: float
    """From the first sign of preparing until the folder has its name."""


class Watch:
    """The state directory of one worker, seen from outside."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._stale = {path.stat().st_ino for path in state.glob("compiled-*")}

    def phase(self) -> str | None:
        """One of `PHASES`; None before the first sign."""
        if any(path.stat().st_ino not in self._stale for path in self.state.glob("compiled-*")):
            return PHASES[4]
        for folder in self.state.glob("building-*.tmp"):
            names = {path.name for path in folder.glob("*")}
            written = [name in names for name in ("tensors.bin", "skeleton.onnx", "record.json")]
            return PHASES[3 if written[2] else 2 if written[1] else 1 if written[0] else 0]
        return None

    def wait(self, wanted: int, process: subprocess.Popen[bytes]) -> bool:
        """Until a phase or a later one is seen; False where the process ends or patience does."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                phase = self.phase()
            except FileNotFoundError:  # renamed while it was looked at
                continue
            if phase is not None and PHASES.index(phase) >= wanted:
                return True
            time.sleep(POLL_SECONDS)
        return False


def start(bundle: Path, state: Path | None) -> subprocess.Popen[bytes]:
    """A process group of its own that loads and answers; without a state directory in the portable form."""
    command = [sys.executable, "-c", LOADER, str(bundle), str(state or "")]
    # Nothing can be made below /proc, so the runtime does without a state directory.
    none = {"NNF_EDGE_STATE": "", "XDG_STATE_HOME": "/proc/none"} if state is None else {}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **none},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def answer(process: subprocess.Popen[bytes]) -> dict[str, str]:
    """What a loader printed; what it died of as `form`."""
    try:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        found: dict[str, str] = json.loads(out.splitlines()[-1])
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"backend": "", "form": "hung", "answers": ""}
    except (ValueError, IndexError):
        last = err.decode("utf-8", "replace").strip().splitlines()[-1:]
        return {"backend": "", "form": f"exit code {process.returncode}: {last}", "answers": ""}
    return found


def take_reference(bundle: Path, folder: Path) -> Reference:
    """Two undisturbed loads in one state directory, and one that has none."""
    state = folder / "reference"
    state.mkdir()
    process, watch = start(bundle, state), Watch(state)
    watch.wait(0, process)
    began = time.monotonic()
    watch.wait(4, process)
    seconds = time.monotonic() - began
    first, second, portable = answer(process), answer(start(bundle, state)), answer(start(bundle, None))
    if first != second or "prepared" not in first["form"] or portable["backend"] != "onnxruntime-portable":
        sys.exit(f"error: undisturbed loads are not as they should be: {first} {second} {portable}")
    return Reference(first, portable, seconds)


class Killer:
    """One worker: its state directory lives through all its kills."""

    def __init__(self, bundle: Path, state: Path, reference: Reference) -> None:
        state.mkdir()
        self._bundle, self._state, self._reference = bundle, state, reference

    def turn(self, number: int, seed: int) -> Turn:
        """One kill that hit, and the load after it; draws again where the process was done before its moment."""
        rng = random.Random(f"{seed}:{number}")
        while True:
            target, before = TARGETS[number % len(TARGETS)], rng.choice(("missing", "damaged"))
            self._spoil(before)
            aim = rng.randrange(1, len(PHASES)) if rng.random() < 0.5 else 0
            delay_s = rng.uniform(0, WITHIN_SECONDS if aim else self._reference.seconds)
            killed = self._kill(target, aim, delay_s)
            if killed is not None:
                phase, moment_s, failures = killed
                after = answer(start(self._bundle, self._state))
                failures += self._judge(after)
                identical = after["answers"] == self._reference.prepared["answers"]
                return Turn(number, target, before, phase, round(moment_s, 3), identical, tuple(failures))

    def _spoil(self, before: str) -> None:
        for folder in self._state.glob("compiled-*"):
            if before == "missing":
                shutil.rmtree(folder)
            else:
                (folder / "skeleton.onnx").write_bytes(b"damaged")

    def _kill(self, target: str, aim: int, delay_s: float) -> tuple[str, float, list[str]] | None:
        """Phase, moment and what failed; None where there was nothing left to kill."""
        watch, process = Watch(self._state), start(self._bundle, self._state)
        watch.wait(0, process)
        began = time.monotonic()
        watch.wait(aim, process)
        time.sleep(delay_s)
        try:
            children = psutil.Process(process.pid).children()
            phase = watch.phase() or PHASES[0]
        except (psutil.NoSuchProcess, FileNotFoundError):
            children, phase = [], PHASES[4]
        moment_s = time.monotonic() - began
        if process.poll() is not None or (target == "child" and not children):
            answer(process)
            return None
        if target == "child":
            children[0].send_signal(signal.SIGKILL)
            return phase, moment_s, self._judge_survivor(answer(process))
        (os.killpg if target == "group" else os.kill)(process.pid, signal.SIGKILL)
        answer(process)
        _, alive = psutil.wait_procs(children, timeout=5)
        return phase, moment_s, ["the child outlived its parent"] * len(alive)

    def _judge_survivor(self, found: dict[str, str]) -> list[str]:
        """A parent whose child was killed answers in the portable form, or the child had just been done."""
        right = found in ({**self._reference.portable, "form": found["form"]}, self._reference.prepared)
        return [] if right else [f"the parent of a killed child: {found}"]

    def _judge(self, found: dict[str, str]) -> list[str]:
        failures = [] if found == self._reference.prepared else [f"the next load: {found}"]
        names = sorted(path.name for path in self._state.iterdir())
        if len(names) != 2 or names != [f"building-{names[1]}.lock", names[1]]:
            failures.append(f"left in the state directory: {names}")
        elif {path.name for path in (self._state / names[1]).iterdir()} != PREPARED_FILES:
            failures.append("left in the prepared folder")
        return failures


def run(numbers: Iterable[int], arguments: argparse.Namespace, keep: Callable[[Turn], None]) -> None:
    """Make turns until all are made or time is up; `keep` is called after each."""
    deadline = time.monotonic() + (arguments.seconds or float("inf"))
    waiting, lock = iter(numbers), threading.Lock()
    with tempfile.TemporaryDirectory() as name:
        reference = take_reference(arguments.bundle, Path(name))

        def work(worker: int) -> None:
            killer = Killer(arguments.bundle, Path(name) / f"state{worker}", reference)
            while time.monotonic() < deadline:
                with lock:
                    number = next(waiting, None)
                if number is None:
                    return
                turn = killer.turn(number, arguments.seed)
                with lock:
                    keep(turn)

        with ThreadPoolExecutor(arguments.workers) as pool:
            list(pool.map(work, range(arguments.workers)))


def summary(turns: list[Turn], arguments: argparse.Namespace) -> dict[str, Any]:
    """The JSON object of the last line."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    return {
        "schema": "nnf-edge/kill-prepare/1",
        "command": shlex.join(["python", *words]),
        "device": sense.device_context(runtime_versions()),
        "bundle": arguments.bundle.name,
        "seed": arguments.seed,
        "kills": len(turns),
        "targets": Counter(turn.target for turn in turns),
        "phases": {phase: sum(turn.phase == phase for turn in turns) for phase in PHASES},
        "before": Counter(turn.before for turn in turns),
        "identical_outputs": sum(turn.identical for turn in turns),
        "failures": [asdict(turn) for turn in turns if turn.failures],
        "moments_s": sorted(turn.moment_s for turn in turns),
    }


def main() -> int:
    """Exit code 0; 1 where a turn failed; 3 where time was up before all were made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=DEMO)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--log", type=Path, help="a file of one line a kill, to go on from")
    parser.add_argument("--seconds", type=float, help="start no kill after so long")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    lines = arguments.log.read_text().splitlines() if arguments.log and arguments.log.exists() else []
    turns = [Turn(**{**found, "failures": tuple(found["failures"])}) for found in map(json.loads, lines)]

    def keep(turn: Turn) -> None:
        turns.append(turn)
        if arguments.log:
            with open(arguments.log, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(turn)) + "\n")

    run(sorted(set(range(arguments.kills)) - {turn.number for turn in turns}), arguments, keep)
    result = summary(turns, arguments)
    print(json.dumps(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if result["failures"] else 3 if len(turns) < arguments.kills else 0


if __name__ == "__main__":
    sys.exit(main())
