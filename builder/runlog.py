"""What a long run says: a progress bar on a terminal, one JSON line per event in a file. The one place for both.

The bar goes to stderr and only when that is a terminal, so that logs and pipes stay clean. A log line holds the UTC
time, the seconds since the log was opened, the event's name and its figures.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TextIO

from edge_runtime.errors import StateError

__all__ = ["Figure", "Progress", "RunLog"]

Figure = str | int | float | bool | None
"""What one value of a log line may be; numbers that are not finite are written as null."""

_BAR_CELLS = 24
_REDRAW_NS = 100_000_000


class Progress:
    """A bar of `total` steps with the time left; draws at most ten times a second."""

    def __init__(self, label: str, total: int, stream: TextIO | None, *, done: int = 0) -> None:
        self._label, self._total, self._stream = label, max(total, 1), stream
        self._done = self._first = done
        self._started_ns = time.perf_counter_ns()
        self._drawn_ns = 0
        self._width = 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` more as done; `note` is shown behind the bar."""
        self._done += steps
        now_ns = time.perf_counter_ns()
        if self._stream is not None and (now_ns - self._drawn_ns >= _REDRAW_NS or self._done >= self._total):
            self._drawn_ns = now_ns
            line = self._line(now_ns, note)
            self._stream.write("\r" + line.ljust(self._width))
            self._stream.flush()
            self._width = len(line)

    def close(self) -> None:
        """End the line of the bar."""
        if self._stream is not None and self._width:
            self._stream.write("\n")
            self._stream.flush()
        self._width = 0

    def _line(self, now_ns: int, note: str) -> str:
        cells = int(min(self._done / self._total, 1.0) * _BAR_CELLS)
        fresh = self._done - self._first
        left_s = (now_ns - self._started_ns) / 1e9 / fresh * (self._total - self._done) if fresh > 0 else 0.0
        bar = "#" * cells + "-" * (_BAR_CELLS - cells)
        return f"{self._label} [{bar}] {self._done}/{self._total}  {_clock(left_s)} left  {note}".rstrip()


class RunLog:
    """Progress for people and JSON lines for programs; close it, or use it as a context manager.

    `path` is appended to (None: no file). Raises `StateError` when it cannot be opened.
    """

    def __init__(self, path: Path | None = None, *, stream: TextIO | None = None) -> None:
        chosen = sys.stderr if stream is None else stream
        self._stream = chosen if chosen.isatty() else None
        self._started_ns = time.perf_counter_ns()
        self._file: TextIO | None = None
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("a", encoding="utf-8")
            except OSError as error:
                raise StateError(
                    f"log {path} cannot be written: {error}", hint="choose another --work folder"
                ) from error

    def event(self, name: str, figures: Mapping[str, Figure] | None = None) -> None:
        """Append one JSON line."""
        if self._file is None:
            return
        line: dict[str, Figure] = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "elapsed_s": round((time.perf_counter_ns() - self._started_ns) / 1e9, 3),
            "event": name,
        }
        line |= {key: _finite(value) for key, value in (figures or {}).items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def say(self, text: str) -> None:
        """One line for a person, on a terminal only."""
        if self._stream is not None:
            self._stream.write(text + "\n")
            self._stream.flush()

    @contextmanager
    def progress(self, label: str, total: int, *, done: int = 0) -> Iterator[Progress]:
        """A bar for `total` steps of which `done` were done by an earlier run."""
        bar = Progress(label, total, self._stream, done=done)
        try:
            yield bar
        finally:
            bar.close()

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Figure]]:
        """Log begin and end of a step with its seconds; figures put into the yielded dict go to the end line."""
        figures: dict[str, Figure] = {}
        started_ns = time.perf_counter_ns()
        self.event(f"{name}.begin")
        try:
            yield figures
        except BaseException as error:
            self.event(f"{name}.failed", {"error": f"{type(error).__name__}: {error}"})
            raise
        self.event(f"{name}.end", {"seconds": round((time.perf_counter_ns() - started_ns) / 1e9, 3)} | figures)

    def close(self) -> None:
        """Close the file; events after this are dropped."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _finite(value: Figure) -> Figure:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
