"""A height field that things are drawn on: what stands how high, of which material, and what belongs to the part.

Drawing happens at several times the final resolution with Pillow's polygon and line rasteriser; shading turns the
heights into light later. Heights are 0 (ground) to 255 levels.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from builder.scenes.materials import MATERIALS

__all__ = ["Canvas", "Pen", "Points", "arc", "circle", "regular"]

Points = npt.NDArray[np.float64]
"""Corner points, float64 [P, 2], in the units of the pen that draws them."""

_WIRE_LAYERS = ((1.0, 0.40), (0.70, 0.75), (0.36, 1.0))


class Canvas:
    """Three aligned single-channel images of `side` x `side` pixels: height, material index, mask of the part."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.height = Image.new("L", (side, side))
        self.material = Image.new("L", (side, side))
        self.target = Image.new("L", (side, side))
        self.draw_height = ImageDraw.Draw(self.height)
        self.draw_material = ImageDraw.Draw(self.material)
        self.draw_target = ImageDraw.Draw(self.target)

    def pen(self, matrix: npt.NDArray[np.float64], centre: tuple[float, float], *, target: bool = False) -> "Pen":
        """A pen whose unit square is mapped by `matrix` (2x2, pixels per unit) and moved to `centre` (pixels).

        With `target`, what it draws is also the part whose label and box are wanted.
        """
        return Pen(self, matrix, centre, target)


class Pen:
    """Draws shapes given in local units onto a `Canvas`; later strokes cover earlier ones."""

    def __init__(
        self, canvas: Canvas, matrix: npt.NDArray[np.float64], centre: tuple[float, float], target: bool
    ) -> None:
        self._canvas = canvas
        self._matrix = matrix
        self._centre = np.asarray(centre, dtype=np.float64)
        self._target = target
        (a, b), (c, d) = matrix.tolist()
        self._unit_px = math.sqrt(abs(a * d - b * c))

    def fill(self, points: Points, height: int, material: str) -> None:
        """Fills one polygon at one height."""
        self._polygon(self._pixels(points), height, MATERIALS[material], 255)

    def erase(self, points: Points) -> None:
        """Cuts one polygon out, down to the ground."""
        self._polygon(self._pixels(points), 0, 0, 0)

    def relief(self, outlines: Sequence[Points], heights: Sequence[int], material: str) -> None:
        """Fills nested polygons, the widest first, each at its own height: a stepped dome or cylinder."""
        self.fill(outlines[0], heights[0], material)
        for outline, height in zip(outlines[1:], heights[1:], strict=True):
            self._canvas.draw_height.polygon(self._pixels(outline).ravel().tolist(), fill=height)

    def dome(self, points: Points, low: int, high: int, material: str, steps: int = 4) -> None:
        """Fills one polygon that rises from `low` at its rim to `high` in the middle, like a rivet's head."""
        middle = points.mean(axis=0)
        shares = [step / (steps - 1) for step in range(steps)]
        outlines = [middle + (points - middle) * math.sqrt(1.0 - 0.94 * share) for share in shares]
        self.relief(outlines, [round(low + (high - low) * share) for share in shares], material)

    def wire(self, points: Points, width: float, height: int, material: str) -> None:
        """Draws a round wire of `width` units along a polyline without sharp corners, with round ends."""
        path = self._pixels(points)
        canvas = self._canvas
        for layer, (share, rise) in enumerate(_WIRE_LAYERS):
            stroke = _stroke(path, max(1.0, width * share * self._unit_px))
            _paint(canvas.draw_height, stroke, round(height * rise))
            if layer == 0:
                _paint(canvas.draw_material, stroke, MATERIALS[material])
            if layer == 0 and self._target:
                _paint(canvas.draw_target, stroke, 255)

    def _polygon(self, corners_px: Points, height: int, material: int, target: int) -> None:
        outline = corners_px.ravel().tolist()
        self._canvas.draw_height.polygon(outline, fill=height)
        self._canvas.draw_material.polygon(outline, fill=material)
        if self._target:
            self._canvas.draw_target.polygon(outline, fill=target)

    def _pixels(self, points: Points) -> Points:
        return points @ self._matrix.T + self._centre


def arc(
    radius: float, start: float, stop: float, *, centre: tuple[float, float] = (0.0, 0.0), count: int = 48
) -> Points:
    """Points on a circle from angle `start` to `stop` (radians), float64 [count, 2]."""
    angle = np.linspace(start, stop, count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius + np.asarray(centre)


def circle(radius: float, *, centre: tuple[float, float] = (0.0, 0.0)) -> Points:
    """A closed circle as a polygon of 36 corners."""
    return _CIRCLE * radius + centre


def regular(corners: int, radius: float, *, centre: tuple[float, float] = (0.0, 0.0), turn: float = 0.0) -> Points:
    """A regular polygon with its corners on `radius`."""
    return arc(radius, turn, turn + 2 * math.pi * (corners - 1) / corners, centre=centre, count=corners)


_Stroke = tuple[list[list[float]], list[list[float]]]
"""Polygons along a wire, and the boxes of the discs at its ends; flat coordinates in pixels."""


def _stroke(path: Points, width_px: float) -> _Stroke:
    """A polyline of some width; in short pieces, because a polygon that crosses itself has holes."""
    along = np.gradient(path, axis=0)
    length = np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)
    side = np.stack([-along[:, 1], along[:, 0]], axis=1) * (width_px / 2 / length)[:, None]
    left, right = path + side, path - side
    pieces = []
    for start in range(0, len(path) - 1, _PIECE):
        part = slice(start, start + _PIECE + 1)
        pieces.append(np.concatenate([left[part], right[part][::-1]]).ravel().tolist())
    radius = (width_px - 1) / 2
    discs = [[x - radius, y - radius, x + radius, y + radius] for x, y in (path[0], path[-1])] if radius >= 1 else []
    return pieces, discs


def _paint(draw: ImageDraw.ImageDraw, stroke: _Stroke, fill: int) -> None:
    for piece in stroke[0]:
        draw.polygon(piece, fill=fill)
    for disc in stroke[1]:
        draw.ellipse(disc, fill=fill)


_PIECE = 12
"""Segments of a wire in one polygon."""

_CIRCLE = arc(1.0, 0.0, 2 * math.pi * 35 / 36, count=36)
