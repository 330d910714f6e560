"""Long work in slices: a generator that yields between them and returns its result."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

__all__ = ["finished"]

_Result = TypeVar("_Result")


def finished(slices: Generator[None, None, _Result]) -> _Result:
    """Run all slices without a pause; gives what they return."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            result: _Result = end.value
            return result
