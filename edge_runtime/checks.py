"""Checks of values that come from outside: the value in its canonical Python type, or a `UsageError` that names it.

They take any object, numpy's scalars included, and never raise anything but `UsageError`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any

from edge_runtime.errors import UsageError

__all__ = ["fields", "finite", "positive", "share", "whole", "word"]


def finite(name: str, value: object) -> float:
    """`value` as a float where it is a finite number; numpy's scalars are, bools are not."""
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise UsageError(f"{name} is not a finite number, but {type(value).__name__}")


def positive(name: str, value: object) -> float:
    """`value` as a float where it is a finite number above 0."""
    number = finite(name, value)
    if number <= 0:
        raise UsageError(f"{name} is {number:g}, not above 0")
    return number


def share(name: str, value: object) -> float:
    """`value` as a float where it is a share of something that leaves a rest: 0 to below 1."""
    number = finite(name, value)
    if not 0 <= number < 1:
        raise UsageError(f"{name} {number:g} is not in [0, 1)")
    return number


def whole(name: str, value: object, *, low: int = 0) -> int:
    """`value` as an int where it is a whole number from `low` to 2**63 - 1; bools and floats are not."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise UsageError(f"{name} is {type(value).__name__}, not a whole number") from error
    if isinstance(value, bool) or not low <= number < 2**63:
        raise UsageError(f"{name} is not a whole number from {low} to 2**63 - 1")
    return number


def word(name: str, value: object) -> str:
    """`value` where it is a text of at least one character."""
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} is not a word")
    return value


def fields(what: str, body: object, *, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """A copy of a JSON object that has all required keys and no unknown one."""
    if not isinstance(body, dict):
        raise UsageError(f"a {what} in JSON is an object, got {type(body).__name__}")
    required, known = set(required), {*required, *optional}
    if missing := sorted(required - body.keys()):
        raise UsageError(f"a {what} in JSON lacks {', '.join(missing)}")
    if unknown := [str(key)[:40] for key in body if key not in known]:
        raise UsageError(f"a {what} in JSON has the unknown keys {', '.join(sorted(unknown))}")
    return dict(body)
