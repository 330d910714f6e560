"""Canonical JSON: one value has one text, and one text has one meaning. Strict where Python's json is generous."""

from __future__ import annotations

import json
import math
import re
from typing import Any

__all__ = ["MAX_DEPTH", "canonical_json", "parse_canonical_json"]

MAX_DEPTH = 16
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


def canonical_json(value: object) -> bytes:
    """`value` as ASCII JSON with sorted keys and no spaces. Raises ValueError for NaN, infinity and unknown types."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def parse_canonical_json(data: bytes) -> Any:
    """Inverse of `canonical_json`. Raises ValueError, and nothing else, for any other bytes."""
    _check_depth(data)
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise ValueError("it holds a byte that is not ASCII") from error
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    if canonical_json(value) != data:
        raise ValueError("it is not canonical (sorted keys, no spaces, shortest numbers)")
    return value


def _check_depth(data: bytes) -> None:
    """Count brackets outside strings before the parser, which recurses, sees them."""
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", data)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it names a key twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is out of range")
    return number
