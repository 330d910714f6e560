"""Where output goes and how it looks: results on stdout, progress on stderr, colour only where a person watches.

Nothing here knows what it prints. The rules: results are text on stdout and are the same when piped, apart from colour;
progress is one line that overwrites itself on stderr, only when stderr is a terminal and not with ``--quiet``; colour
follows the terminal, ``NO_COLOR`` and ``--no-color``; block characters are used where the encoding has them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TextIO

__all__ = ["Console", "Style"]

Style = Literal["", "bold", "dim", "good", "warn", "bad", "accent"]

_CODES: Mapping[Style, str] = {
    "bold": "1",
    "dim": "2",
    "good": "32",
    "warn": "33",
    "bad": "31",
    "accent": "36",
}
_EIGHTHS = " ▏▎▍▌▋▊▉"
_REDRAW_S = 0.1
_TICK_S = 0.5


@dataclass(slots=True)
class Console:
    """The two streams of one command."""

    out: TextIO
    """Results. Usually stdout."""

    err: TextIO
    """Progress, warnings and errors. Usually stderr."""

    silent: bool = False
    """Whether results are kept from `out`, because ``--json -`` owns it."""

    quiet: bool = False
    """Whether progress is kept from `err`."""

    colour: bool = False
    """Whether `out` may hold colour codes."""

    blocks: bool = True
    """Whether `out` can show block characters; else ASCII stands in for them."""

    _progress_width: int = field(default=0, init=False)
    _drawn_at: float = field(default=-1.0, init=False)

    @classmethod
    def standard(cls, *, silent: bool = False, quiet: bool = False, no_colour: bool = False) -> Console:
        """The console of this process, from its streams and its environment."""
        out = sys.stdout
        wanted = not no_colour and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return cls(out, sys.stderr, silent, quiet, wanted and out.isatty(), _can_show("█▌→·±◄", out))

    def line(self, text: str = "") -> None:
        """One line of the result."""
        if self.silent:
            return
        self.clear_progress()
        print(text, file=self.out, flush=self.out.isatty())

    def note(self, text: str) -> None:
        """One line for the person on stderr that is no result: a warning, or what was left out and why."""
        self.clear_progress()
        print(text, file=self.err, flush=True)

    def paint(self, text: str, style: Style) -> str:
        """`text` in a style where colour is on."""
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.colour and style else text

    def symbol(self, pretty: str, plain: str) -> str:
        """`pretty` where the encoding of the terminal has it."""
        return pretty if self.blocks else plain

    def bar(self, fraction: float, width: int) -> str:
        """A bar of `width` cells, `fraction` in [0, 1] of it full, padded with spaces."""
        cells = min(max(fraction, 0.0), 1.0) * width
        if not self.blocks:
            return ("#" * round(cells)).ljust(width)
        full, rest = int(cells), int((cells - int(cells)) * 8)
        return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)

    def progress(self, label: str, fraction: float | None = None) -> None:
        """Redraw the progress line: what is being done, and how much of it in [0, 1] where that is known."""
        now = time.perf_counter()
        if self.quiet or not self.err.isatty() or now - self._drawn_at < _REDRAW_S:
            return
        self._drawn_at = now
        share = "" if fraction is None else f" {self.bar(fraction, 24)} {fraction:4.0%}"
        text = f"  {label}{share}"[:79]
        print("\r" + text.ljust(self._progress_width), end="", file=self.err, flush=True)
        self._progress_width = len(text)

    @contextmanager
    def timer(self, label: str, seconds: float) -> Iterator[None]:
        """While the block runs, draw progress towards `seconds` from a thread that wakes twice a second."""
        done, start = threading.Event(), time.perf_counter()

        def tick() -> None:
            while not done.wait(_TICK_S):
                self.progress(label, min(1.0, (time.perf_counter() - start) / seconds))

        thread = threading.Thread(target=tick, name="nnf-edge-progress", daemon=True)
        if not self.quiet and self.err.isatty():
            thread.start()
        try:
            yield
        finally:
            done.set()
            if thread.ident is not None:
                thread.join()
            self.clear_progress()

    def clear_progress(self) -> None:
        """Take the progress line away before something else is printed."""
        if self._progress_width:
            print("\r" + " " * self._progress_width + "\r", end="", file=self.err, flush=True)
            self._progress_width, self._drawn_at = 0, -1.0


def _can_show(text: str, stream: TextIO) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
