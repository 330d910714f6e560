"""Checkpoints of a training run: atomic on the disk, complete enough to go on as if nothing had happened.

A checkpoint is one dict of tensors and plain Python values, so it is read with `weights_only=True`: a file from
somewhere else can be wrong, but it cannot run code.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from builder.files import write_atomically
from edge_runtime.errors import StateError

__all__ = ["from_bytes", "load", "restore_rng", "rng_state", "save", "to_bytes", "why_unreadable"]

_HINT = "delete the file to begin this step again"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and lists, tuples and dicts of them) to `path`, atomically.

    Raises `StateError` when the place cannot be written.
    """
    write_atomically(path, to_bytes(state))


def to_bytes(state: dict[str, Any]) -> bytes:
    """What `save` would write."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> dict[str, Any]:
    """Inverse of `to_bytes`, for bytes of this program; tensors are on the CPU."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def load(path: Path) -> dict[str, Any] | None:
    """What `save` wrote; None where there is no file. Raises `StateError` when the file is damaged or foreign."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on a foreign pickle's protocol, on the way to refusing it
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        raise StateError(f"checkpoint {path} cannot be read: {why_unreadable(path, error)}", hint=_HINT) from error
    if not isinstance(state, dict):
        raise StateError(f"checkpoint {path} holds a {type(state).__name__}, not a dict", hint=_HINT)
    return state


def why_unreadable(path: Path, error: Exception) -> str:
    """In a few words why `torch.load` refused a file; its own are about its inside, and advise to run what is in it."""
    if not path.is_file() or isinstance(error, OSError):
        return str(error)
    if path.stat().st_size == 0:
        return "it is empty"
    with path.open("rb") as file:
        begins_as_zip = file.read(2) == b"PK"
    if begins_as_zip and not zipfile.is_zipfile(path):
        return "it is cut off"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds something else than tensors and plain values"
    return str(error).partition("\n")[0][:200]


def rng_state() -> dict[str, Tensor]:
    """State of torch's global generators: of the CPU, and of each CUDA device where there is one.

    All other randomness of the builder is derived from seeds and steps.
    """
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    return {"cpu": torch.get_rng_state()} | {f"cuda:{index}": torch.cuda.get_rng_state(index) for index in devices}


def restore_rng(state: dict[str, Tensor]) -> None:
    """Inverse of `rng_state`; devices that are not here are left out."""
    torch.set_rng_state(state["cpu"])
    for index in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        if (kept := state.get(f"cuda:{index}")) is not None:
            torch.cuda.set_rng_state(kept, index)
