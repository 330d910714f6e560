"""Memory that was freed goes back to the system: glibc keeps it otherwise, as much as a session or two."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["give_back_freed"]


def give_back_freed() -> None:
    """Takes some milliseconds, without the interpreter's lock; does nothing where the C library is not glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
