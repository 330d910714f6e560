"""Things that are not wanted: what lies around the part, and what lies on top of it."""

import math

import numpy as np
import numpy.typing as npt

from builder.scenes.canvas import Canvas, Pen, Points, circle
from builder.scenes.materials import pick

__all__ = ["cover", "scatter"]

_STONES = ("stone", "pale stone", "dark stone")
_SCRAPS = ("leaf", "dry leaf", "paper", "card", "rust", "black nylon", "blue plastic", "yellow plastic", "steel")


def scatter(canvas: Canvas, rng: np.random.Generator) -> None:
    """Scatters up to four stones, scraps, wires and lumps of metal over the whole ground."""
    for _ in range(int(rng.integers(0, 5))):
        reach = canvas.side * math.exp(rng.uniform(math.log(0.025), math.log(0.11)))
        pen = canvas.pen(_turn(rng, reach), (rng.uniform(0, canvas.side), rng.uniform(0, canvas.side)))
        _DISTRACTORS[int(rng.integers(len(_DISTRACTORS)))](pen, rng)


def cover(canvas: Canvas, box: tuple[int, int, int, int], share: float, rng: np.random.Generator) -> None:
    """Lays one thing over a side of the part's box (pixels of the canvas), hiding about `share` of its width."""
    left, top, right, bottom = box
    span = max(right - left, bottom - top)
    angle = rng.uniform(0, 2 * math.pi)
    reach = span * rng.uniform(0.25, 0.45)
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    half = np.array([(right - left) / 2, (bottom - top) / 2])
    edge = middle + half * np.array([math.cos(angle), math.sin(angle)]) * (1.0 + reach / span - 2 * share)
    pen = canvas.pen(_turn(rng, reach), (edge[0], edge[1]))
    (_stone, _scrap, _leaf)[int(rng.integers(3))](pen, rng)


def _turn(rng: np.random.Generator, reach_px: float) -> npt.NDArray[np.float64]:
    angle = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]]) * reach_px


def _blob(rng: np.random.Generator, corners: int, rough: float) -> Points:
    outline = circle(1.0)[:: 36 // corners]
    return outline * rng.uniform(1 - rough, 1.0, (len(outline), 1)) * np.array([1.0, rng.uniform(0.55, 1.0)])


def _stone(pen: Pen, rng: np.random.Generator) -> None:
    pen.dome(_blob(rng, 9, 0.3), 50, 140, pick(rng, _STONES), steps=7)


def _scrap(pen: Pen, rng: np.random.Generator) -> None:
    pen.fill(_blob(rng, 6, 0.6), int(rng.integers(10, 40)), pick(rng, _SCRAPS))


def _leaf(pen: Pen, rng: np.random.Generator) -> None:
    along = np.linspace(0, math.pi, 10)
    width = rng.uniform(0.35, 0.6)
    upper = np.stack([np.cos(along), np.sin(along) ** 1.4 * width], axis=1)
    material = pick(rng, ("leaf", "dry leaf"))
    pen.fill(np.concatenate([upper, upper[::-1] * np.array([1.0, -1.0])]), 45, material)
    pen.wire(np.array([[-1.25, 0.0], [0.9, 0.0]]), 0.07, 70, material)


def _wire(pen: Pen, rng: np.random.Generator) -> None:
    along = np.linspace(-1, 1, 8)
    bow = rng.uniform(-0.7, 0.7) * along**2 + rng.uniform(-0.3, 0.3) * np.sin(along * 4)
    material = pick(rng, ("copper", "steel", "black nylon", "red plastic", "blue plastic"))
    pen.wire(np.stack([along, bow], axis=1), rng.uniform(0.10, 0.22), 80, material)


def _slug(pen: Pen, rng: np.random.Generator) -> None:
    """A plain metal disc or bar: shares material and outline with the parts, but is none of them."""
    outline = circle(0.8) if rng.random() < 0.5 else _blob(rng, 4, 0.15)
    pen.fill(outline, int(rng.integers(30, 110)), pick(rng, ("steel", "zinc", "brass", "black oxide", "rust")))


_DISTRACTORS = (_stone, _stone, _scrap, _leaf, _wire, _slug)
