"""One scene, or a set of them on all cores; the same seed gives the same bytes in every process."""

import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from builder.scenes.canvas import Canvas
from builder.scenes.clutter import cover, scatter
from builder.scenes.conditions import CONDITIONS, expose, make_light, wet
from builder.scenes.ground import draw_ground
from builder.scenes.materials import palette
from builder.scenes.parts import CLASSES, draw_part
from builder.scenes.shading import shade
from edge_runtime.errors import UsageError

__all__ = ["Scene", "render", "render_set"]

_OVERSAMPLING = 3
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Scene:
    """One rendered picture and what is on it."""

    image: npt.NDArray[np.uint8]
    """RGB, uint8 [S, S, 3]."""
    label: int
    """Index into `CLASSES`."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom of the part in pixels of the image, as if nothing lay on it; 0..S."""
    condition: str
    """One of `CONDITIONS`."""


def render(seed: int, index: int = 0, *, condition: str = "day", size: int = 64, label: int | None = None) -> Scene:
    """Renders scene number `index` of `seed`.

    The same (seed, index) under another condition is the same place in other weather: part, pose, ground and clutter
    stay. A given `label` replaces the drawn one.

    Args:
        seed: Names the set of scenes, >= 0.
        index: Number of the scene in the set, >= 0.
        condition: One of `CONDITIONS`.
        size: Side of the square image in pixels, 32..512.
        label: Index into `CLASSES`; None draws one uniformly.

    Raises:
        UsageError: For a condition, label, size, seed or index that does not exist.
    """
    _check(seed, index, condition, size, label)
    scene_rng = np.random.default_rng((seed, index, 0))
    weather_rng = np.random.default_rng((seed, index, 1 + CONDITIONS.index(condition)))
    drawn = int(scene_rng.integers(len(CLASSES)))
    chosen = drawn if label is None else label
    canvas = Canvas(size * _OVERSAMPLING)
    ground = draw_ground(size, scene_rng)
    materials = palette(scene_rng)
    azimuth, elevation = scene_rng.uniform(0, 2 * math.pi), math.radians(scene_rng.uniform(28, 68))
    scatter(canvas, scene_rng)
    box = _place(canvas, chosen, scene_rng)
    if scene_rng.random() < 0.35:
        cover(canvas, box, scene_rng.uniform(0.05, 0.25), scene_rng)
    light = make_light(condition, azimuth, elevation, weather_rng)
    linear = shade(canvas, wet(ground, condition, weather_rng), materials, light, scene_rng)
    left, top, right, bottom = (edge / _OVERSAMPLING for edge in box)
    return Scene(expose(linear, condition, weather_rng), chosen, (left, top, right, bottom), condition)


def render_set(
    seed: int,
    count: int,
    conditions: Sequence[str] = CONDITIONS,
    size: int = 64,
    workers: int = 1,
) -> dict[str, npt.NDArray[np.generic]]:
    """Renders scenes 0..count-1 of `seed`, the conditions in turn; a longer set begins with the shorter one.

    Args:
        seed: Names the set; sets of different seeds share nothing.
        count: Number of scenes, >= 1.
        conditions: What to take in turn, from `CONDITIONS`.
        size: Side of the images in pixels.
        workers: Processes to render with; 1 renders in this one.

    Returns:
        images uint8 [count, size, size, 3], labels int64 [count], boxes float32 [count, 4] (left, top, right, bottom
        in pixels), conditions unicode [count].

    Raises:
        UsageError: For an empty set or a condition that does not exist.
    """
    if count < 1 or not conditions:
        raise UsageError(
            f"a set of {count} scenes in {len(conditions)} conditions", hint="ask for at least one of each"
        )
    for condition in conditions:
        _check(seed, 0, condition, size, None)
    jobs = [(seed, start, min(start + _CHUNK, count), tuple(conditions), size) for start in range(0, count, _CHUNK)]
    if workers <= 1 or len(jobs) == 1:
        scenes = [scene for job in jobs for scene in _render_range(job)]
    else:
        # Spawned, not forked: the parent may hold torch's threads, and a fork would inherit their locks.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            scenes = [scene for part in pool.map(_render_range, jobs) for scene in part]
    return {
        "images": np.stack([scene.image for scene in scenes]),
        "labels": np.array([scene.label for scene in scenes], dtype=np.int64),
        "boxes": np.array([scene.box for scene in scenes], dtype=np.float32),
        "conditions": np.array([scene.condition for scene in scenes]),
    }


def _render_range(job: tuple[int, int, int, tuple[str, ...], int]) -> list[Scene]:
    seed, start, stop, conditions, size = job
    return [render(seed, i, condition=conditions[i % len(conditions)], size=size) for i in range(start, stop)]


def _place(canvas: Canvas, label: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws the part at a random pose and returns its box in pixels of the canvas."""
    side = canvas.side
    reach = side * 0.5 * math.exp(rng.uniform(math.log(0.66), math.log(0.96)))
    angle, lean = rng.uniform(0, 2 * math.pi, 2).tolist()
    tilt = rng.uniform(0.68, 1.0)
    mirror = np.array([1.0, 1.0 if rng.random() < 0.5 else -1.0])
    matrix = _rotation(lean) @ np.diag([1.0, tilt]) @ _rotation(angle - lean) * mirror * reach
    slack = side / 2 - reach * 1.02
    centre = (side / 2 + rng.uniform(-slack, slack), side / 2 + rng.uniform(-slack, slack))
    draw_part(label, canvas.pen(matrix, centre, target=True), rng)
    box = canvas.target.getbbox()
    return box if box is not None else (0, 0, side, side)


def _rotation(angle: float) -> npt.NDArray[np.float64]:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def _check(seed: int, index: int, condition: str, size: int, label: int | None) -> None:
    if condition not in CONDITIONS:
        raise UsageError(f"unknown condition {condition!r}", hint=f"one of {', '.join(CONDITIONS)}")
    if not 32 <= size <= 512:
        raise UsageError(f"image side of {size} pixels", hint="32 to 512")
    if seed < 0 or index < 0:
        raise UsageError(f"seed {seed}, index {index}", hint="both count from 0")
    if label is not None and not 0 <= label < len(CLASSES):
        raise UsageError(f"label {label}", hint=f"0 to {len(CLASSES) - 1}")
