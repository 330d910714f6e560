"""Parts seen from above that are round: nut, wing nut, washer, o-ring, bearing, gear."""

import math

import numpy as np

from builder.scenes.canvas import Pen, Points, arc, circle, regular
from builder.scenes.materials import pick

__all__ = ["draw_bearing", "draw_gear", "draw_nut", "draw_o_ring", "draw_washer", "draw_wing_nut"]

_METALS = ("steel", "zinc", "brass", "black oxide")


def draw_nut(pen: Pen, rng: np.random.Generator) -> None:
    """Hexagon nut: chamfered hexagon with a threaded hole."""
    material = pick(rng, _METALS)
    hole = rng.uniform(0.42, 0.56)
    pen.fill(regular(6, 0.95), 95, material)
    pen.fill(circle(0.83), 125, material)
    if rng.random() < 0.3:
        pen.fill(circle(hole + 0.10), 150, "nylon" if rng.random() < 0.5 else material)
    pen.fill(circle(hole), 70, material)
    pen.fill(circle(hole * 0.93), 30, "soot")
    pen.erase(circle(hole * 0.84))


def draw_wing_nut(pen: Pen, rng: np.random.Generator) -> None:
    """Wing nut: a round hub with a hole between two rounded ears that rise to either side."""
    material = pick(rng, _METALS)
    spread, lift = rng.uniform(0.25, 0.33), rng.uniform(0.30, 0.52)
    tip = arc(spread, -0.55 * math.pi, 0.80 * math.pi, centre=(0.66, lift), count=14)
    ear = np.concatenate([np.array([[0.05, -0.30]]), tip, np.array([[0.10, 0.34]])])
    for side in (-1.0, 1.0):
        pen.dome(ear * np.array([side, 1.0]), 70, 105, material, steps=3)
    pen.fill(circle(0.42), 150, material)
    pen.fill(circle(0.35), 170, material)
    hole = rng.uniform(0.18, 0.24)
    pen.fill(circle(hole), 60, "soot")
    pen.erase(circle(hole * 0.75))


def draw_washer(pen: Pen, rng: np.random.Generator) -> None:
    """Flat washer: a thin disc with a hole, now and then a split lock washer."""
    material = pick(rng, (*_METALS, "copper", "zinc"))
    hole = rng.uniform(0.42, 0.66)
    pen.fill(circle(0.95), 38, material)
    pen.fill(circle(0.90), 50, material)
    pen.fill(circle(hole + 0.04), 40, material)
    pen.erase(circle(hole))
    if rng.random() < 0.2:
        gap = 0.05
        pen.erase(np.array([[0.3, -gap], [1.0, -gap - 0.12], [1.0, gap - 0.12], [0.3, gap]]))


def draw_o_ring(pen: Pen, rng: np.random.Generator) -> None:
    """O-ring: a round cord in a circle, of rubber or plastic, at times squeezed out of round."""
    material = pick(rng, ("rubber", "rubber", "black nylon", "red plastic", "green plastic"))
    thickness = rng.uniform(0.17, 0.34)
    squeeze = np.array([1.0, rng.uniform(0.78, 1.0)])
    rings = [circle(0.95 - thickness * share) * squeeze for share in (0.0, 0.15, 0.32, 0.68, 0.85)]
    pen.relief(rings, (44, 82, 110, 82, 44), material)
    pen.erase(circle(0.95 - thickness) * squeeze)


def draw_bearing(pen: Pen, rng: np.random.Generator) -> None:
    """Ball bearing: two races with balls or a shield between them."""
    material = pick(rng, ("steel", "zinc", "black oxide"))
    hole = rng.uniform(0.30, 0.46)
    inner, outer = hole + 0.14, 0.79
    pen.fill(circle(0.95), 120, material)
    pen.fill(circle(0.92), 140, material)
    pen.fill(circle(outer), 55, "soot")
    if rng.random() < 0.65:
        balls = int(rng.integers(7, 11))
        radius = min((outer - inner) * 0.46, math.pi * (outer + inner) / 2 / balls * 0.9)
        for middle in regular(balls, (outer + inner) / 2, turn=rng.uniform(0, 1)):
            pen.dome(circle(radius, centre=(middle[0], middle[1])), 70, 125, "steel", steps=2)
    else:
        pen.fill(circle(outer - 0.03), 112, pick(rng, ("steel", "rubber", "red plastic", "zinc")))
        pen.fill(circle(inner + 0.03), 60, "soot")
    pen.fill(circle(inner), 140, material)
    pen.erase(circle(hole))


def draw_gear(pen: Pen, rng: np.random.Generator) -> None:
    """Spur gear: teeth around a disc with a bore, and at times lightening holes."""
    material = pick(rng, (*_METALS, "nylon", "black nylon"))
    teeth = int(rng.integers(10, 19))
    pen.fill(_toothed(teeth, 0.97, rng.uniform(0.76, 0.82)), 110, material)
    pen.fill(circle(0.66), 85, material)
    pen.fill(circle(0.40), 120, material)
    if rng.random() < 0.4:
        for middle in regular(int(rng.integers(3, 6)), 0.52, turn=rng.uniform(0, 2)):
            pen.erase(circle(0.10, centre=(middle[0], middle[1])))
    bore = rng.uniform(0.18, 0.30)
    pen.erase(circle(bore))
    if rng.random() < 0.4:
        pen.erase(np.array([[-0.07, 0.0], [0.07, 0.0], [0.07, bore + 0.09], [-0.07, bore + 0.09]]))


def _toothed(teeth: int, tip: float, root: float) -> Points:
    """Outline of a spur gear: per tooth two corners on the tip circle and two on the root circle."""
    pitch = 2 * math.pi / teeth
    angle = np.arange(teeth)[:, None] * pitch + np.array([-0.30, -0.17, 0.17, 0.30]) * pitch
    radius = np.tile([root, tip, tip, root], teeth)
    flat = angle.ravel()
    return np.stack([np.cos(flat) * radius, np.sin(flat) * radius], axis=1)
