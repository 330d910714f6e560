"""Files that are either the old ones or the new ones, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from edge_runtime.errors import StateError

__all__ = ["write_atomically"]


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
