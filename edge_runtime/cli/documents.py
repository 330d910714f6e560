"""The JSON form of a result: one document a command, with what is needed to know later what was measured where."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from edge_runtime import __version__
from edge_runtime.errors import StateError
from edge_runtime.state import write_file

__all__ = ["check_target", "document", "versions", "write_document"]

_DISTRIBUTIONS = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "pillow", "psutil")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it runs on, read without importing any of it."""
    found = {"nnf-edge": __version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def document(kind: str, result: Mapping[str, Any], device: Mapping[str, Any], command: list[str]) -> dict[str, Any]:
    """The envelope around `result`. `kind` is the verb; its number changes when a field changes its meaning."""
    return {
        "schema": f"nnf-edge/{kind}/1",
        "written_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": ["nnf-edge", *command],
        "versions": versions(),
        "device": dict(device),
        "result": dict(result),
    }


def check_target(target: str) -> None:
    """Raises `StateError` where `write_document` could not write there: better before the work than after it."""
    folder = Path(target).parent
    if target != "-" and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise StateError(f"{target!r} cannot be written", hint="name a file in a folder that exists and is yours")


def write_document(target: str, body: Mapping[str, Any]) -> None:
    """Write to stdout (``-``) or to a file, beside it first and then renamed. Raises `StateError`."""
    text = json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    write_file(target, text.encode())
