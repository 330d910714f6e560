"""Checkpoints of a training run: atomic on the disk, complete enough to go on as if nothing had happened.

A checkpoint is one dict of tensors and plain Python values, so it is read with `weights_only=True`: a file from
somewhere else can be wrong, but it cannot run code.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from builder.files import write_atomically
from edge_runtime.errors import StateError

__all__ = ["load", "restore_rng", "rng_state", "save"]

_HINT = "delete the file to begin this step again"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and lists, tuples and dicts of them) to `path`, atomically.

    Raises `StateError` when the place cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any] | None:
    """What `save` wrote; None where there is no file. Raises `StateError` when the file is damaged or foreign."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on a foreign pickle's protocol, on the way to refusing it
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        raise StateError(f"checkpoint {path} cannot be read: {error}", hint=_HINT) from error
    if not isinstance(state, dict):
        raise StateError(f"checkpoint {path} holds a {type(state).__name__}, not a dict", hint=_HINT)
    return state


def rng_state() -> Tensor:
    """State of torch's global CPU generator (all other randomness of the builder is derived from seeds and steps)."""
    return torch.get_rng_state()


def restore_rng(state: Tensor) -> None:
    """Inverse of `rng_state`."""
    torch.set_rng_state(state)
