"""The scored points of an arm in its folder: figures in score.json, and which test images each subnet gets right."""

# ruff: noqa: TID251 - a bench may use the builder; only the runtime must not

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from builder.files import write_atomically
from edge_runtime.quality import Values

__all__ = ["is_kept", "keep", "kept_points", "kept_right", "key_of", "point_within", "shared_points", "shared_right"]


def kept_points(folder: Path) -> dict[str, Any]:
    """What each share's own search found, by the share of the oracle's latency as a text."""
    path = folder / "score.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def kept_right(folder: Path, fraction: float) -> Values | None:
    """For each test image whether the subnet of a share's own search is right; None where there is none."""
    path = _right_path(folder, fraction)
    return np.load(path).astype(np.float64) if path.exists() else None


def is_kept(folder: Path, fraction: float) -> bool:
    """Whether an arm has a point at this share."""
    return key_of(fraction) in kept_points(folder)


def keep(folder: Path, fraction: float, point: dict[str, Any], right: Values | None) -> None:
    """Add a point; `right` is None where the share is out of reach."""
    if right is not None:
        with _right_path(folder, fraction).open("wb") as file:
            np.save(file, right.astype(np.uint8))
    points = kept_points(folder) | {key_of(fraction): point}
    write_atomically(folder / "score.json", json.dumps(points, indent=1).encode())


def shared_points(folder: Path) -> dict[str, Any]:
    """For each share the best subnet within it that any search of this arm found: one for less time serves it too.

    The best is that of the highest estimate on the search images; the test images decide nothing. What was found at a
    further share, where other arms are not searched, serves no common one.
    """
    points = kept_points(folder)
    found = [point for point in points.values() if point.get("estimate") is not None]
    return {key: _best_within(point, found) for key, point in points.items()}


def shared_right(folder: Path, fraction: float) -> Values | None:
    """For each test image whether the subnet of a shared point is right; None where there is none."""
    point = shared_points(folder).get(key_of(fraction))
    return None if point is None else kept_right(folder, point.get("found_at", fraction))


def point_within(folder: Path, most: float) -> dict[str, Any] | None:
    """The best subnet that any search of this arm found within a share of the oracle's latency, which may be any.

    None where no search found one; its `fraction` is where it was found, and what `kept_right` asks for.
    """
    found = [point for point in kept_points(folder).values() if point.get("estimate") is not None]
    within = [point for point in found if point["ratio"] <= most]
    return max(within, key=lambda point: float(point["estimate"]), default=None)


def _best_within(point: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, Any]:
    within = [other for other in found if other["ratio"] <= point["fraction"]]
    if not point.get("further"):
        within = [other for other in within if not other.get("further")]
    best = max(within, key=lambda other: float(other["estimate"]), default=point)
    return point if best is point else best | {"fraction": point["fraction"], "found_at": best["fraction"]}


def key_of(fraction: float) -> str:
    """By what name a point of this share is kept."""
    return f"{fraction:.4f}"


def _right_path(folder: Path, fraction: float) -> Path:
    return folder / f"right-{key_of(fraction)}.npy"
