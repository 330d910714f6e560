"""Kill -9 at random moments of a search; the next process must go on from its checkpoint as if nothing had been.

First a child process adapts a bundle to one half of its images, so that a subnet is remembered; another searches the
other half unbroken. Then children search that half again in copies of the same state directory. Each is killed at a
seeded moment (drawn in turn from the time that the unbroken search took for evaluating, and from what came after), and
the next one goes on; one whose killed predecessor was measuring is let end, and the next search begins. After each
kill: the state loads, the active subnet is the one before (or the chosen one, where that had just been remembered), the
checkpoint can be read, and no image on which it holds a value is run again. At the end of a search every value must be
that of the unbroken one. The searches have no time limit to speak of, so that the clock decides nothing but what is
measured of the finalists.

    python tools/bench/search_kills.py [--kills 100] [--seed 0] [--images 200] [--json FILE]

The last line of output is one JSON object; exit code 1 on any failure. Nothing is timed, so other work may run beside.
The full subnet's own answers, with which others are compared, are not kept and are run again: `reference_images`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import common
from search_life import Image, Life, arguments

from edge_runtime.adaptation.checkpoint import Checkpoint, Checkpoints
from edge_runtime.bundle import Bundle
from edge_runtime.errors import EdgeError
from edge_runtime.gates import GateSpace
from edge_runtime.state import StateDir

ROOT = Path(__file__).resolve().parents[2]
LIFE = Path(__file__).with_name("search_life.py")
PATIENCE_SECONDS = 300.0
POLL_SECONDS = 0.002


class Killer:
    """Searches that are killed, one state directory each."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self._given, self._folder, self._base = given, folder, folder / "base"
        self._space = Bundle.read(given.bundle).manifest.space
        self._rng = random.Random(given.seed)
        self.failures: list[str] = []
        self.phases: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def prepare(self) -> None:
        """A remembered subnet, and the unbroken search with the time that its parts take."""
        first = self._whole(self._base, half=0)
        shutil.copytree(self._base, self._folder / "unbroken")
        self.unbroken = self._whole(self._folder / "unbroken", half=1)
        assert first.end is not None
        self.before = first.end["chosen"]

    def _whole(self, state: Path, half: int) -> Life:
        log = self._folder / "log"
        process = self._start(state, log, half)
        self._await(process, log, "active")
        began = time.monotonic()
        self._await(process, log, '"phase": "measure"')
        searched = time.monotonic()
        self._end(process)
        life = Life.read(log)
        if life.end is None:
            raise EdgeError("an undisturbed search failed", hint=self._last_words)
        self._seconds = searched - began, time.monotonic() - began
        return life

    def searches(self) -> None:
        """Search and kill until enough kills have hit; the last search ends undisturbed."""
        while self.counts["kills"] < self._given.kills:
            self.counts["searches"] += 1
            state = self._folder / f"state{self.counts['searches']}"
            shutil.copytree(self._base, state)
            self._one_search(state)
            shutil.rmtree(state)

    def _one_search(self, state: Path) -> None:
        ever: set[Image] = set()
        last = Life()
        while True:
            kept = _kept(state, self._space)
            life = self._life(state, kill=last.phase != "measure" and self.counts["kills"] < self._given.kills)
            self._judge(life, kept, ever, last)
            last = life
            ever |= life.ran.keys()
            if life.end is not None:
                self._judge_end(life, state)
                return

    def _life(self, state: Path, *, kill: bool) -> Life:
        log = self._folder / "log"
        process = self._start(state, log, half=1)
        self._await(process, log, "active")
        if kill:
            searched_s, whole_s = self._seconds
            late = self.counts["kills"] % 2
            time.sleep(self._rng.uniform(searched_s, whole_s) if late else self._rng.uniform(0, searched_s))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        self._end(process)
        life = Life.read(log)
        if life.end is None and process.returncode != -signal.SIGKILL:
            raise EdgeError(f"a search ended with exit code {process.returncode}", hint=self._last_words)
        if life.end is None:
            self.counts["kills"] += 1
            self.phases[life.phase] += 1
        return life

    def _judge(self, life: Life, kept: Checkpoint | None, ever: set[Image], last: Life) -> None:
        if life.active is None:
            return self._fail("the state did not load")
        self.counts["loads"] += 1
        if life.active == self.before:
            self.counts["active_unchanged"] += 1
        elif life.active == last.ending:
            self.counts["ended_before_the_kill"] += 1
        else:
            self._fail(f"the active subnet was {self.before}, now {life.active}")
        if kept is not None:
            self.counts["from_checkpoint"] += bool(kept.values)
            held = {(str(gates), at) for gates, values in kept.values.items() for at in range(len(values))}
            again = held & life.ran.keys()
            self.counts["repeated_images"] += len(again)
            if again:
                self._fail(f"{len(again)} images were run again, among them {min(again)}")
        full = str(self._space.default)
        self.counts["images"] += sum(gates != full for gates, _ in life.ran)
        self.counts["reference_images"] += sum(gates == full for gates, _ in life.ran)
        self.counts["lost_images"] += sum(gates != full for gates, _ in life.ran.keys() & ever)
        return None

    def _judge_end(self, life: Life, state: Path) -> None:
        assert life.end is not None
        assert self.unbroken.end is not None
        mine, theirs = life.end["values"], self.unbroken.end["values"]
        for gates in mine.keys() & theirs.keys():
            count = min(len(mine[gates]), len(theirs[gates]))
            self.counts["compared_values"] += count
            if mine[gates][:count] != theirs[gates][:count]:
                self.counts["other_values"] += 1
                self._fail(f"the values of {gates} are not those of the unbroken search")
        self.counts["same_choice"] += life.end["chosen"] == self.unbroken.end["chosen"]
        self.counts["evaluated_subnets"] += len(mine)
        self.counts["evaluated_there_too"] += len(mine.keys() & theirs.keys())
        if list(state.glob("search-*.json")):
            self._fail("the checkpoint of a search that has ended is still there")

    def _fail(self, what: str) -> None:
        self.failures.append(f"after kill {self.counts['kills']}: {what}")

    def _start(self, state: Path, log: Path, half: int) -> subprocess.Popen[bytes]:
        log.unlink(missing_ok=True)
        given = self._given
        words = ["--bundle", given.bundle, "--data", given.data, "--images", given.images, "--seed", given.seed]
        words += ["--measure-seconds", given.measure_seconds, "--state", state, "--log", log, "--half", half]
        command = [sys.executable, str(LIFE), *map(str, words)]
        with open(self._folder / "stderr", "wb") as stderr:
            return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)

    def _await(self, process: subprocess.Popen[bytes], log: Path, word: str) -> None:
        """Until a child has said a word, or has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and word in log.read_text(encoding="utf-8"):
                return
            time.sleep(POLL_SECONDS)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise EdgeError("a search did not end", hint=self._last_words) from None

    @property
    def _last_words(self) -> str:
        lines = (self._folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _kept(state: Path, space: GateSpace) -> Checkpoint | None:
    """The checkpoint in a state directory; a file that is there must be one."""
    found = [Checkpoints(StateDir.open(state), path.name).read(space) for path in state.glob("search-*.json")]
    if None in found:
        raise EdgeError("a killed search left a checkpoint that cannot be read")
    return found[0] if found else None


def _bench(given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        killer = Killer(given, Path(name))
        killer.prepare()
        killer.searches()
    names = (
        "kills",
        "searches",
        "loads",
        "active_unchanged",
        "ended_before_the_kill",
        "from_checkpoint",
        "images",
        "reference_images",
    )
    names += ("lost_images", "repeated_images", "compared_values", "other_values", "same_choice")
    names += ("evaluated_subnets", "evaluated_there_too")
    return {
        "bundle": Path(given.bundle).name,
        "seed": given.seed,
        "images_searched": given.images,
        **{name: killer.counts[name] for name in names},
        "killed_in": dict(killer.phases),
        "failures": killer.failures,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments(parser)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--json", help="write the result to this file too")
    return parser.parse_args()


def main() -> int:
    """Exit code 1 where anything failed."""
    results: list[dict[str, Any]] = []

    def bench(given: argparse.Namespace) -> dict[str, Any]:
        results.append(_bench(given))
        return results[0]

    code = common.run("search_kills", bench, _arguments(), alone=False)
    return code or int(bool(results[0]["failures"]))


if __name__ == "__main__":
    sys.exit(main())
