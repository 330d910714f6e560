"""A busy neighbour on purpose: worker processes that take CPU time, bounded in number and in life, and always reaped.

Three things end a worker: leaving the context manager (on Ctrl-C and SIGTERM too), its own time limit, and the end of
its parent, which it looks for many times a second. So not even ``kill -9`` of the demo leaves one behind for long.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final

__all__ = ["MAX_WORKERS", "Pressure", "confined"]

MAX_WORKERS: Final = 16

# Multiplies a table that does not fit into the first-level caches: costs a neighbour cycles and some memory traffic.
_WORK = """
import os, sys, time
end, parent = time.monotonic() + float(sys.argv[1]), int(sys.argv[2])
table = list(range(50_000))
while time.monotonic() < end and os.getppid() == parent:
    table = [value * 5 + 1 & 0xFFFF for value in table]
"""


class Pressure:
    """`workers` busy processes between `start` and `stop`; a context manager that leaves none behind.

    Args:
        workers: 1 to `MAX_WORKERS` processes.
        limit_s: seconds after which a worker ends by itself.
    """

    def __init__(self, workers: int, limit_s: float) -> None:
        self._workers = min(max(workers, 1), MAX_WORKERS)
        self._limit_s = limit_s
        self._running: list[subprocess.Popen[bytes]] = []

    @property
    def workers(self) -> int:
        """Processes that `start` makes."""
        return self._workers

    @property
    def on(self) -> bool:
        """Whether the workers run."""
        return bool(self._running)

    def start(self) -> None:
        """Make the machine busy. Does nothing where it is already."""
        command = [sys.executable, "-I", "-S", "-c", _WORK, str(self._limit_s), str(os.getpid())]
        while len(self._running) < self._workers:
            self._running.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )

    def stop(self) -> None:
        """End the workers and wait for them. Does nothing where none runs."""
        for process in self._running:
            process.kill()
        while self._running:
            self._running[-1].wait()
            self._running.pop()

    def __enter__(self) -> Pressure:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextmanager
def confined(cores: int) -> Iterator[int]:
    """Keep this process and its children on at most `cores` of its CPUs, so that a few workers make a big machine busy.

    Yields how many CPUs that are; where the system does not know affinity nothing is confined.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count() or 1
        return
    before = os.sched_getaffinity(0)
    kept = sorted(before)[-cores:]
    os.sched_setaffinity(0, kept)
    try:
        yield len(kept)
    finally:
        os.sched_setaffinity(0, before)
