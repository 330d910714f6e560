"""Files of the builder: written so that they are either the old or the new ones, and arrays read from an .npz."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import InputError, StateError

__all__ = ["read_npz", "write_atomically"]


def read_npz(path: Path, keys: Iterable[str], *, hint: str) -> dict[str, npt.NDArray[Any]]:
    """The named arrays of an .npz; raises `InputError` with `hint` when it is missing, damaged or lacks one."""
    try:
        # Opened here and not by numpy, which leaves the file open when it is not a zip.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in keys}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read: {error}", hint=hint) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to the disk, then rename; makes the folder where it is missing.

    A process killed at any moment leaves the old file or the new one (and perhaps a `.partial` file, which the next
    write replaces). One writer per file is assumed. Raises `StateError` when the place cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise StateError(
            f"{path} cannot be written: {error}", hint="free space there or choose another folder"
        ) from error


def _flush_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; some file systems cannot, and then nothing is lost but that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
