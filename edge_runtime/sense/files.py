"""Small files of /proc and /sys: their text, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

__all__ = ["Known", "Unknown", "read_int", "read_table", "read_text"]

MAX_READ_BYTES = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unknown:
    """A signal that this machine does not give."""

    reason: str
    """Why, for people. Example: ``/sys/class/thermal has no zones``."""

    def __str__(self) -> str:
        return f"unknown: {self.reason}"


Known: TypeAlias = T | Unknown


def read_text(path: Path) -> Known[str]:
    """What a file holds, at most 1 MiB of it; bytes that are not UTF-8 are replaced."""
    try:
        with open(path, "rb") as stream:
            return stream.read(MAX_READ_BYTES).decode("utf-8", "replace")
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")


def read_int(path: Path) -> int | None:
    """The integer that is all a file holds; None where it holds something else or cannot be read."""
    text = read_text(path)
    try:
        return int(text) if isinstance(text, str) else None
    except ValueError:
        return None


def read_table(path: Path) -> Known[dict[str, str]]:
    """The first value of each key of a ``key: value`` file."""
    text = read_text(path)
    if isinstance(text, Unknown):
        return text
    table: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            table.setdefault(key.strip(), value.strip())
    return table
