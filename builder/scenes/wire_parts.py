"""Bent, wound and cut parts: circlip, spring, hook, bracket, cable tie."""

import math

import numpy as np

from builder.scenes.canvas import Pen, arc, circle
from builder.scenes.materials import pick

__all__ = ["draw_bracket", "draw_cable_tie", "draw_circlip", "draw_hook", "draw_spring"]


def draw_circlip(pen: Pen, rng: np.random.Generator) -> None:
    """Retaining ring: an open flat ring with a lug and a small hole at either end."""
    material = pick(rng, ("steel", "zinc", "black oxide", "copper"))
    gap = rng.uniform(0.30, 0.62)
    width = rng.uniform(0.17, 0.25)
    radius = 0.93 - width / 2
    inward = rng.random() < 0.5
    pen.wire(arc(radius, gap, 2 * math.pi - gap, count=72), width, 70, material)
    for side in (-1.0, 1.0):
        lug = radius - 0.10 if inward else radius + 0.02
        middle = (math.cos(gap) * lug, side * math.sin(gap) * lug)
        pen.fill(circle(0.17, centre=middle), 74, material)
        pen.fill(circle(0.075, centre=middle), 12, "soot")


def draw_spring(pen: Pen, rng: np.random.Generator) -> None:
    """Coil spring from the side: front strands over darker back strands, flat or hooked ends."""
    material = pick(rng, ("steel", "zinc", "copper", "brass"))
    turns = int(rng.integers(5, 9))
    half = rng.uniform(0.32, 0.46)
    width = rng.uniform(0.11, 0.15)
    pitch = 1.8 / turns
    for turn in range(turns):
        x = -0.9 + turn * pitch
        pen.wire(np.array([[x + pitch * 0.5, half], [x + pitch, -half]]), width * 0.9, 60, "black oxide")
    for turn in range(turns + 1):
        x = -0.9 + turn * pitch
        pen.wire(np.array([[x - pitch * 0.02, -half], [x + pitch * 0.5, half]]), width, 150, material)
    if rng.random() < 0.3:
        pen.wire(arc(half * 0.8, -1.9, 1.9, centre=(0.95 + half * 0.3, 0.0), count=12), width, 110, material)


def draw_hook(pen: Pen, rng: np.random.Generator) -> None:
    """Hook of bent rod: a straight stem with an eye or a second hook at one end and a hook at the other."""
    material = pick(rng, ("steel", "zinc", "brass", "black oxide"))
    width = rng.uniform(0.18, 0.25)
    radius = rng.uniform(0.30, 0.40)
    bend = arc(radius, math.pi, math.pi * rng.uniform(-0.15, 0.12), centre=(radius, 0.52))
    stem = np.array([[0.0, -0.45], [0.0, 0.45]])
    pen.wire(np.concatenate([stem, bend]) - [radius / 2, 0.0], width, 110, material)
    if rng.random() < 0.6:
        eye = arc(0.22, math.pi / 2, math.pi * 2.45, centre=(-radius / 2, -0.70))
        pen.wire(eye, width * 0.9, 110, material)
    else:
        back = arc(radius * 0.8, 0.0, -math.pi * 0.95, centre=(-radius * 0.8, -0.45))
        pen.wire(back - [radius / 2, 0.0], width, 110, material)


def draw_bracket(pen: Pen, rng: np.random.Generator) -> None:
    """Angle bracket: an L of flat plate with screw holes and a rounded or square corner."""
    material = pick(rng, ("steel", "zinc", "zinc", "brass", "rust"))
    width = rng.uniform(0.42, 0.62)
    reach = rng.uniform(0.65, 0.95)
    left, top, right, bottom = -0.85, -reach, 0.85, 0.85
    outline = [[left, top], [left + width, top], [left + width, bottom - width], [right, bottom - width]]
    outline += [[right, bottom], [left + 0.12, bottom], [left, bottom - 0.12]]
    plate = np.array(outline)
    pen.fill(plate, 55, material)
    if rng.random() < 0.5:
        fold = np.array([[left, top], [left + 0.12, top], [left + 0.12, bottom], [left, bottom]])
        pen.fill(fold, 120, material)
    spots = [(left + width / 2 + 0.03, top + 0.28), (right - 0.28, bottom - width / 2)]
    if rng.random() < 0.6:
        spots.append((left + width / 2 + 0.03, bottom - width / 2))
    for spot in spots:
        pen.fill(circle(width * 0.26, centre=spot), 40, material)
        pen.erase(circle(width * 0.20, centre=spot))


def draw_cable_tie(pen: Pen, rng: np.random.Generator) -> None:
    """Cable tie: a thin strap, bent or looped, that leaves a square locking head."""
    material = pick(rng, ("nylon", "nylon", "black nylon", "red plastic", "blue plastic"))
    width = rng.uniform(0.15, 0.21)
    looped = rng.random() < 0.8
    if looped:
        sweep = rng.uniform(1.55, 1.9) * math.pi
        angle = np.linspace(0.0, sweep, 64)
        radius = np.linspace(0.72, rng.uniform(0.5, 0.62), 64)
        strap = np.stack([np.cos(angle) * radius, np.sin(angle) * radius], axis=1)
        tail = strap[-1] + (strap[-1] - strap[-8]) * rng.uniform(0.6, 2.2)
        strap = np.concatenate([strap, tail[None]])
    else:
        along = np.linspace(-0.9, 0.95, 24)
        bow = rng.uniform(-0.45, 0.45) * (1 - along**2) + rng.uniform(-0.2, 0.2) * np.sin(along * 3.0)
        strap = np.stack([along, bow], axis=1)
    pen.wire(strap, width, 60, material)
    side = width * rng.uniform(0.85, 1.1)
    head = np.array([[-side, -side], [side, -side], [side, side], [-side, side]]) + strap[0]
    pen.fill(head, 110, material)
    pen.fill(head * 0.5 + strap[0] * 0.5, 70, material)
