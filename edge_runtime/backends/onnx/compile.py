"""Starting the child that prepares a bundle, and opening what it made.

What is in a folder is used only if its record is complete, of the same key, and every file has the recorded digest; so
a folder that was cut short, damaged or made by another version is never loaded, it is made again.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from edge_runtime.backends.base import DamagedError, RefusedError, SessionOptions
from edge_runtime.backends.onnx.compiled import KEPT, CompiledSession
from edge_runtime.backends.onnx.modules import ModuleInput
from edge_runtime.backends.onnx.prepare import FORMS, PORTABLE, RECORD, SKELETON, TENSORS, file_sha256
from edge_runtime.backends.onnx.session import WEIGHTS_FILE
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, BundleError

__all__ = ["compile_bundle", "open_compiled", "read_modules", "read_record"]

LEAST_GAIN = 1.01
"""A specialised session has to be quicker than the gated one by this factor to be worth its memory."""

SPECIAL_BYTES = 64 << 20
"""What the specialised sessions that nobody holds may take together, but for the active one, which always stays."""

MAX_RECORD_BYTES = 1 << 20

_CHILD = """
import ctypes, json, os, signal, sys
try:  # 1 is PR_SET_PDEATHSIG: whoever wanted this is gone, so nobody does
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (OSError, AttributeError):
    pass
request = json.load(sys.stdin)
if os.getppid() != request["parent"]:
    sys.exit(1)
sys.path[:] = request["path"]
from edge_runtime.backends.onnx.prepare import main
from edge_runtime.sense import anonymous_bytes
main(request, print, anonymous_bytes)
"""


def compile_bundle(bundle: Bundle, options: SessionOptions, folder: Path, *, key: str, seconds: float) -> None:
    """Prepare a bundle in a child process; the files are in `folder` afterwards.

    Raises:
        RefusedError: The child said why it cannot be done, or took too long.
        BackendError: The child could not be started, or was killed.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise BackendError("there is no Python interpreter to prepare the model with")
    request = {
        "parent": os.getpid(),
        "source": str(Path(bundle.source).absolute()),
        "digest": bundle.digest,
        "folder": str(folder),
        "key": key,
        "threads": options.threads,
        "providers": list(options.providers),
        "seed": 0,
        "path": _module_path(),
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
        raise RefusedError(f"preparing the model took more than {seconds:g} s") from error
    except OSError as error:
        raise BackendError(f"the process that prepares the model cannot be started: {error}") from error
    _check_answer(child)


def _module_path() -> list[str]:
    """Where the child finds modules: as here, but never where the process happens to be; then this package's folder."""
    return [*(entry for entry in sys.path if os.path.isabs(entry)), str(Path(__file__).resolve().parents[3])]


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
        raise RefusedError(f"the model could not be prepared: {reason}")


def open_compiled(bundle: Bundle, options: SessionOptions, folder: Path, *, key: str) -> CompiledSession:
    """Open what `compile_bundle` made.

    Raises:
        DamagedError: It is incomplete, damaged, or of another key.
        BackendError: It belongs to somebody else, or cannot be opened.
    """
    record = read_record(folder, key)
    specialises = record["gain"] >= LEAST_GAIN
    refused = record["refused"] if isinstance(record.get("refused"), dict) else {}
    note = "; ".join(f"{form} refused: {str(reason)[:100]}" for form, reason in refused.items())
    made = {"form": record["form"], "specialises": specialises, "note": note, "modules": read_modules(record)}
    try:
        session = CompiledSession(folder, bundle.manifest, options, **made)
    except BundleError as error:  # the bundle is right: it was checked when the folder was made
        raise DamagedError(f"the prepared model is another one: {error.message}") from error
    session.kept = sessions_that_fit(record.get("session_bytes"))
    return session


def sessions_that_fit(session_bytes: object) -> int:
    """How many specialised sessions stay where one takes so many bytes; the most where that is not known."""
    if not isinstance(session_bytes, int) or session_bytes <= 0:
        return KEPT
    return max(1, min(KEPT, SPECIAL_BYTES // session_bytes))


def read_record(folder: Path, key: str) -> dict[str, Any]:
    """What a folder says of itself, if all of it is true; raises as `open_compiled`."""
    _check_owner(folder)
    try:
        record: dict[str, Any] = json.loads(_read_small(folder / RECORD))
        files, known = record["files"], record["form"] in FORMS and isinstance(record["gain"], float)
        needed = {SKELETON, PORTABLE, WEIGHTS_FILE} if read_modules(record) else {SKELETON}
        if record["key"] != key or not known or not needed <= files.keys() <= needed | {TENSORS}:
            raise DamagedError("the prepared model is of another version")
        for name, entry in files.items():
            _check_owner(folder / name)
            if (folder / name).stat().st_size != entry["bytes"] or file_sha256(folder / name) != entry["sha256"]:
                raise DamagedError(f"{name} of the prepared model is damaged")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"the prepared model cannot be read: {str(error)[:200]}") from error
    except OSError as error:
        raise BackendError(f"the prepared model cannot be read: {error.strerror or error}") from error
    return record


def read_modules(record: dict[str, Any]) -> list[ModuleInput]:
    """What the gated session is fed. Raises `KeyError`, `TypeError` or `ValueError` where the record is wrong there."""
    return [ModuleInput.from_json(entry) for entry in record["modules"]]


def _check_owner(path: Path) -> None:
    """Refuse what another user made or may change: the graph in it is not checked again."""
    try:
        found = path.lstat()
    except FileNotFoundError as error:
        raise DamagedError(f"{path.name} of the prepared model is missing") from error
    except OSError as error:
        raise BackendError(f"the prepared model cannot be looked at: {error.strerror}") from error
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        raise DamagedError(f"{path.name} of the prepared model is no file")
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise BackendError(f"{path.name} of the prepared model may be changed by another user")


def _read_small(path: Path) -> bytes:
    _check_owner(path)
    with open(path, "rb") as stream:
        data = stream.read(MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        raise DamagedError(f"{path.name} of the prepared model is too long")
    return data
