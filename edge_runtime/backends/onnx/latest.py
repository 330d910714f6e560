"""Work in the background for the newest of what is asked for; what was asked for before it and not begun is dropped.

Starting a thread takes half a millisecond, waking one a few microseconds; so a thread stays for a while, and ends when
nothing more is asked for.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Latest"]

T = TypeVar("T")

IDLE_SECONDS = 1.0
STOP_SECONDS = 1.0


class Latest(Generic[T]):
    """Does one thing at a time, in one thread. Thread-safe.

    Args:
        name: Of the thread.
        do: A method, which is done; what it raises is dropped. Its object is not kept alive but while it works.
        rest: Done once when nothing more was asked for in a while, before the thread ends.
    """

    def __init__(self, name: str, do: Callable[[T], object], rest: Callable[[], object] = lambda: None) -> None:
        self._name, self._do, self._rest = name, weakref.WeakMethod(do), rest
        # Taken by itself, not through the condition: that would run Python code, in which a signal handler of the main
        # thread may raise while the lock is held already and not yet guarded.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._asked: list[T] = []
        self._thread: threading.Thread | None = None
        self._stopped = False

    def ask(self, item: T) -> None:
        """Have it done soon, unless something else is asked for until then; nothing where no thread can be started."""
        with self._lock:
            if self._stopped:
                return
            self._asked = [item]
            if self._thread is not None:
                self._changed.notify()
                return
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError:  # no more threads
                self._asked = []

    def stop(self) -> None:
        """Do nothing more, and wait for `STOP_SECONDS` at most until what is being done is finished."""
        with self._lock:
            self._stopped = True
            self._asked = []
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(STOP_SECONDS)

    def _work(self) -> None:
        rested = False
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._asked or self._stopped, 0 if rested else IDLE_SECONDS)
                if not self._asked and (rested or self._stopped):
                    self._thread = None
                    return
                items, self._asked = self._asked, []
            rested = not items
            with contextlib.suppress(Exception):  # the thread has to be there for what is asked for next
                if rested:
                    self._rest()
                elif do := self._do():
                    do(items[0])
                do = None
