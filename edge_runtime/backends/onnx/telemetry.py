"""The one place that imports onnxruntime: with its telemetry off and its harmless start-up noise left out.

onnxruntime >= 1.29 decides at its own import whether it sends telemetry on Linux, and the first session then writes a
device id and a database below the user's cache. ``ORT_DISABLE_TELEMETRY=1`` in the environment before that import is
the only switch that prevents it; `edge_runtime/__init__.py` sets it and warns when onnxruntime was imported earlier.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edge_runtime.errors import BackendError

__all__ = ["import_onnxruntime"]

NOISE = (b"device discovery failed",)
SEVERITY_ERROR = 3
_LOCK = threading.Lock()


def import_onnxruntime() -> Any:
    """The onnxruntime module of whichever distribution is installed.

    Raises:
        BackendError: It is not installed, or cannot be loaded on this machine.
    """
    with _LOCK:
        if "onnxruntime" in sys.modules:
            module: Any = sys.modules["onnxruntime"]
        else:
            os.environ["ORT_DISABLE_TELEMETRY"] = "1"
            module = _import_quietly()
        module.set_default_logger_severity(SEVERITY_ERROR)
        # Too late for the first event where somebody else imported it first, but it stops those that follow.
        module.disable_telemetry_events()
        return module


def _import_quietly() -> Any:
    try:
        with _without_noise():
            return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendError(
            f"onnxruntime cannot be imported: {error}", hint="pip install onnxruntime (or the vendor's wheel)"
        ) from error


@contextmanager
def _without_noise() -> Iterator[None]:
    """Hold stderr back and pass it on without the lines that mean nothing to a user.

    onnxruntime looks for GPUs while it is imported, before its log level can be set, and warns on every board without
    one. The lines come from C++, so only the file descriptor can catch them.
    """
    try:
        kept, caught = os.dup(2), os.memfd_create("onnxruntime-import")
    except (AttributeError, OSError):
        yield
        return
    os.dup2(caught, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.lseek(caught, 0, os.SEEK_SET)
        with open(caught, "rb") as stream:
            lines = [line for line in stream if not any(noise in line for noise in NOISE)]
        if lines:
            os.write(2, b"".join(lines))
        os.close(kept)
