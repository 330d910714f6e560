"""Starting the child that prepares a bundle, and opening what it made.

What is in a folder is used only if its record is complete, of the same key, and every file has the recorded digest; so
a folder that was cut short, damaged or made by another version is never loaded, it is made again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from edge_runtime.backends.base import SessionOptions
from edge_runtime.backends.onnx.compiled import CompiledSession
from edge_runtime.backends.onnx.prepare import FORMS, RECORD, SKELETON, TENSORS, file_sha256
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError

__all__ = ["compile_bundle", "open_compiled"]

LEAST_GAIN = 1.01
"""A specialised session has to be quicker than the gated one by this factor to be worth its memory."""

_CHILD = (
    "import json, sys; request = json.load(sys.stdin); sys.path[:] = request['path']; "
    "from edge_runtime.backends.onnx.prepare import main; main(request, print)"
)


def compile_bundle(bundle: Bundle, options: SessionOptions, folder: Path, *, key: str, seconds: float) -> None:
    """Prepare a bundle in a child process; the files are in `folder` afterwards.

    Raises:
        BackendError: The child could not be started, failed, ran out of memory or time, or was killed; says which.
    """
    request = {
        "source": str(Path(bundle.source).absolute()),
        "digest": bundle.digest,
        "folder": str(folder),
        "key": key,
        "threads": options.threads,
        "providers": list(options.providers),
        "seed": 0,
        "path": [str(Path(entry or ".").absolute()) for entry in sys.path],
    }
    try:
        child = subprocess.run(
            [sys.executable, "-I", *(["-B"] if sys.dont_write_bytecode else []), "-c", _CHILD],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"preparing the model took more than {seconds:g} s") from error
    except OSError as error:
        raise BackendError(f"the process that prepares the model cannot be started: {error}") from error
    _check_answer(child)


def _check_answer(child: subprocess.CompletedProcess[bytes]) -> None:
    if child.returncode < 0:
        raise BackendError(f"the process that prepares the model was killed by signal {-child.returncode}")
    try:
        answer = json.loads(child.stdout.splitlines()[-1])
        reason = str(answer["error"]) if "error" in answer else ""
    except (ValueError, IndexError, TypeError):
        last = child.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = f"exit code {child.returncode}: {last[-1][:200] if last else 'no word'}"
    if reason:
        raise BackendError(f"the model could not be prepared: {reason}")


def open_compiled(bundle: Bundle, options: SessionOptions, folder: Path, *, key: str) -> CompiledSession:
    """Open what `compile_bundle` made. Raises `BackendError` where it is incomplete, damaged or of another key."""
    record = _read_record(folder, key)
    specialises = record["gain"] >= LEAST_GAIN
    return CompiledSession(folder, bundle.manifest, options, form=record["form"], specialises=specialises)


def _read_record(folder: Path, key: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files, known = record["files"], record["form"] in FORMS and isinstance(record["gain"], float)
        if record["key"] != key or not known or not {SKELETON} <= files.keys() <= {SKELETON, TENSORS}:
            raise BackendError("the prepared model is of another version")
        for name, entry in files.items():
            if (folder / name).stat().st_size != entry["bytes"] or file_sha256(folder / name) != entry["sha256"]:
                raise BackendError(f"{name} of the prepared model is damaged")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendError(f"the prepared model cannot be read: {error}") from error
    return record
