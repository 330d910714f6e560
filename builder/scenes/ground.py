"""Textured ground at the final resolution: asphalt, metal plate, gravel, wood; linear reflectance."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["Field", "draw_ground", "rgb", "smooth_noise"]

Field = npt.NDArray[np.float32]
"""A float32 image, [S, S] or by colour [3, S, S] (planes: numpy is several times faster on them)."""


def draw_ground(size: int, rng: np.random.Generator) -> Field:
    """One random ground, linear RGB reflectance, float32 [3, size, size], mostly 0.05..0.5."""
    kind = int(rng.integers(len(_GROUNDS)))
    ground = _GROUNDS[kind](size, rng)
    stains = 1.0 + 0.14 * smooth_noise(size, 3, rng) + 0.07 * smooth_noise(size, 9, rng)
    return np.clip(ground * stains, 0.015, 0.85)


def smooth_noise(size: int, cells: int, rng: np.random.Generator) -> Field:
    """Band-limited noise of about unit deviation: a `cells` x `cells` lattice, bicubic, float32 [size, size]."""
    lattice = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(lattice).resize((size, size), Image.Resampling.BICUBIC))


def rgb(red: float, green: float, blue: float) -> Field:
    """One colour as planes, float32 [3, 1, 1]."""
    return np.array((red, green, blue), dtype=np.float32).reshape(3, 1, 1)


def _tint(rng: np.random.Generator, colour: tuple[float, float, float], spread: float) -> Field:
    red, green, blue = np.array(colour) * rng.uniform(1 - spread, 1 + spread) * rng.uniform(0.95, 1.05, 3)
    return rgb(red, green, blue)


def _turned(size: int, rng: np.random.Generator) -> tuple[Field, Field]:
    """Pixel coordinates in a randomly turned frame, each in about -0.7..0.7."""
    angle = rng.uniform(0.0, math.pi)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    x, y = axis[None, :], axis[:, None]
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def _along(values: Field, coordinate: Field) -> Field:
    """Looks a 1-D profile up at a coordinate in -0.75..0.75 (nearest entry)."""
    index = ((coordinate + 0.75) * (len(values) / 1.5)).astype(np.int32)
    return values[np.clip(index, 0, len(values) - 1)]


def _asphalt(size: int, rng: np.random.Generator) -> Field:
    grain = rng.standard_normal((size, size), dtype=np.float32)
    tone = 1.0 + 0.22 * grain + 0.22 * smooth_noise(size, size // 3, rng)
    tone += 0.9 * (rng.random((size, size), dtype=np.float32) > 0.985)
    ground = tone * _tint(rng, (0.105, 0.105, 0.110), 0.35)
    u, v = _turned(size, rng)
    if rng.random() < 0.25:
        paint = (np.abs(v - rng.uniform(-0.5, 0.5)) < rng.uniform(0.05, 0.16)) & (tone > rng.uniform(0.5, 0.9))
        colour = (0.55, 0.54, 0.50) if rng.random() < 0.6 else (0.55, 0.36, 0.04)
        ground = np.where(paint, rgb(*colour) * (0.75 + 0.2 * tone), ground)
    if rng.random() < 0.35:
        wander = 0.06 * smooth_noise(size, 6, rng) + rng.uniform(-0.4, 0.4)
        ground *= 1.0 - 0.75 * np.exp(-(((u - wander) * size / 1.1) ** 2))
    return ground


def _metal_plate(size: int, rng: np.random.Generator) -> Field:
    u, v = _turned(size, rng)
    brushed = _along(rng.standard_normal(3 * size, dtype=np.float32), v)
    tone = 1.0 + rng.uniform(0.05, 0.13) * brushed + 0.10 * smooth_noise(size, 4, rng) + 0.25 * u * rng.uniform(-1, 1)
    if rng.random() < 0.4:
        pitch = rng.uniform(9.0, 15.0)
        a, b = np.sin(u * pitch * 2.2), np.sin(v * pitch * 2.2)
        tread = np.where(
            np.sin(u * pitch * 1.1) * np.sin(v * pitch * 1.1) > 0, a * a * (1 - b * b), b * b * (1 - a * a)
        )
        tone += 0.55 * np.clip(tread - 0.55, 0.0, 0.3) * np.sign(a + 0.4)
    elif rng.random() < 0.6:
        seam = np.abs(v - rng.uniform(-0.4, 0.4)) * size
        tone *= 1.0 - 0.6 * np.exp(-(seam**2)) + 0.3 * np.exp(-((seam - 1.8) ** 2))
    ground = tone * _tint(rng, (0.30, 0.305, 0.315), 0.4)
    if rng.random() < 0.45:
        rust = np.clip(smooth_noise(size, 7, rng) + 0.6 * smooth_noise(size, 22, rng) - 0.9, 0.0, 1.0)
        ground = ground * (1 - rust) + rust * _tint(rng, (0.22, 0.09, 0.04), 0.3)
    return ground


def _gravel(size: int, rng: np.random.Generator) -> Field:
    """Pebbles: nearest of a jittered lattice of centres, each lit like a low dome."""
    cells = int(rng.integers(7, 15))
    wide = cells + 2
    cell_y, cell_x = np.mgrid[-1 : cells + 1, -1 : cells + 1]
    jitter_x, jitter_y = rng.uniform(0.1, 0.9, (2, wide, wide))
    stone, gap, slope = _nearest((cell_x + jitter_x).astype(np.float32), (cell_y + jitter_y).astype(np.float32), size)
    shade = rng.uniform(0.55, 1.45, wide * wide).astype(np.float32)[stone]
    warmth = rng.uniform(-0.10, 0.10, wide * wide).astype(np.float32)[stone]
    grain = 1.0 + 0.10 * rng.standard_normal((size, size), dtype=np.float32)
    lit = 1.0 + (0.45 if rng.random() < 0.5 else -0.45) * slope
    ground = shade * np.clip(gap * 3.0, 0.12, 1.0) * lit * grain * _tint(rng, (0.22, 0.205, 0.185), 0.35)
    return ground * (1.0 + warmth * rgb(1.0, 0.0, -1.0))


def _nearest(spot_x: Field, spot_y: Field, size: int) -> tuple[npt.NDArray[np.int32], Field, Field]:
    """Voronoi cells of one spot per lattice cell (a ring of cells lies outside the image).

    Returns:
        Number of the nearest spot, distance to the second minus to the first (cells), offset along the diagonal
        (cells).
    """
    wide = len(spot_x)
    place = (np.arange(size, dtype=np.float32) + 0.5) * ((wide - 2) / size)
    cell = place.astype(np.int32)
    best = np.full((size, size), 9.0, dtype=np.float32)
    second, stone = best, np.zeros((size, size), dtype=np.int32)
    for row in range(3):
        for column in range(3):
            number = (cell + row)[:, None] * wide + (cell + column)[None, :]
            dx, dy = place[None, :] - spot_x.ravel()[number], place[:, None] - spot_y.ravel()[number]
            distance = dx * dx + dy * dy
            second = np.minimum(second, np.maximum(best, distance))
            stone = np.where(distance < best, number, stone)
            best = np.minimum(best, distance)
    gap = np.sqrt(second) - np.sqrt(best)
    return stone, gap, place[None, :] + place[:, None] - (spot_x + spot_y).ravel()[stone]


def _wood(size: int, rng: np.random.Generator) -> Field:
    _, v = _turned(size, rng)
    bend = 0.05 * smooth_noise(size, 3, rng)
    fibres = _along(rng.standard_normal(2 * size, dtype=np.float32), np.clip(v + 0.2 * bend, -0.75, 0.75))
    rings = np.sin((v + bend) * rng.uniform(25.0, 70.0) + 0.6 * fibres)
    tone = 1.0 + 0.13 * rings + 0.10 * fibres + 0.05 * smooth_noise(size, size // 4, rng)
    plank = rng.uniform(0.28, 0.6)
    along = (v + rng.uniform(0, 1)) / plank
    board = np.floor(along).astype(np.int32)
    tone *= rng.uniform(0.75, 1.2, 9).astype(np.float32)[np.clip(board + 3, 0, 8)]
    edge = np.minimum(along - board, 1 - (along - board)) * plank * size
    tone *= 1.0 - 0.8 * np.exp(-(edge**2))
    colour = ((0.36, 0.225, 0.115), (0.25, 0.14, 0.065), (0.30, 0.27, 0.23))[int(rng.integers(3))]
    return tone * _tint(rng, colour, 0.3)


_GROUNDS = (_asphalt, _metal_plate, _gravel, _wood)
