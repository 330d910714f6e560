"""Parts seen from the side that have an axis: bolt, screw, rivet, pin, fuse."""

import numpy as np

from builder.scenes.canvas import Pen, Points, arc
from builder.scenes.materials import pick

__all__ = ["draw_bolt", "draw_fuse", "draw_pin", "draw_rivet", "draw_screw"]


def draw_bolt(pen: Pen, rng: np.random.Generator) -> None:
    """Hexagon-head bolt: a faceted head, a cylindrical shank of even width, thread to a flat end."""
    material = pick(rng, ("steel", "zinc", "steel", "black oxide", "rust"))
    half = rng.uniform(0.20, 0.28)
    neck = rng.uniform(-0.66, -0.50)
    head = half * rng.uniform(1.95, 2.3)
    _cylinder(pen, neck, 0.97, half, 120, material)
    start = neck + rng.uniform(0.02, 0.7) * (0.9 - neck)
    _thread(pen, start, 0.95, (half, half), rng.uniform(0.085, 0.12), material)
    pen.fill(_box(-0.97, neck, head), 95, material)
    pen.fill(_box(-0.95, neck - 0.02, head * 0.56), 150, material)
    if rng.random() < 0.35:
        pen.fill(_box(neck, neck + 0.06, head * 1.2), 110, material)


def draw_screw(pen: Pen, rng: np.random.Generator) -> None:
    """Wood or sheet-metal screw: countersunk or pan head, coarse thread that tapers to a point."""
    material = pick(rng, ("brass", "zinc", "brass", "copper", "rust"))
    half = rng.uniform(0.18, 0.25)
    head = half * rng.uniform(1.7, 2.1)
    neck = rng.uniform(-0.78, -0.66)
    taper = rng.uniform(0.15, 0.50)
    shank = np.array([[neck, -half], [taper, -half], [0.98, 0.0], [taper, half], [neck, half]])
    pen.fill(shank, 70, material)
    pen.fill(shank * np.array([1.0, 0.55]), 115, material)
    _thread(pen, neck + rng.uniform(0.05, 0.3), taper, (half, half), rng.uniform(0.13, 0.17), material)
    _thread(pen, taper, 0.93, (half, 0.03), 0.13, material)
    if rng.random() < 0.5:
        pen.fill(np.array([[-0.97, -head], [-0.97, head], [neck, half], [neck, -half]]), 125, material)
        pen.fill(_box(-0.97, -0.93, head), 150, material)
    else:
        cap = arc(head, np.pi / 2, 3 * np.pi / 2, centre=(neck, 0.0), count=14)
        squash = np.array([0.30 / head if head > 0.30 else 1.0, 1.0])
        pen.dome((cap - [neck, 0.0]) * squash + [neck, 0.0], 90, 155, material, steps=3)


def draw_rivet(pen: Pen, rng: np.random.Generator) -> None:
    """Solid or blind rivet: a domed head on a plain shank; blind ones carry their thin mandrel."""
    material = pick(rng, ("zinc", "zinc", "copper", "steel"))
    half = rng.uniform(0.24, 0.34)
    head = half * rng.uniform(1.8, 2.2)
    blind = rng.random() < 0.5
    left, right = (-0.25, 0.62) if blind else (-0.55, rng.uniform(0.6, 0.97))
    if blind:
        _cylinder(pen, -0.98, -0.2, half * 0.35, 70, "steel")
        pen.dome(_box(right - 0.02, right + 0.2, half * 0.8), 60, 110, "steel", steps=3)
    _cylinder(pen, left, right, half, 120, material)
    cap = arc(head, np.pi / 2, 3 * np.pi / 2, count=14) * np.array([rng.uniform(0.55, 0.9), 1.0]) + [left, 0.0]
    pen.dome(cap, 90, 165, material)


def draw_pin(pen: Pen, rng: np.random.Generator) -> None:
    """Dowel or clevis pin: a plain polished cylinder with chamfered ends, at times a groove or a cross hole."""
    material = pick(rng, ("steel", "zinc", "black oxide"))
    half = rng.uniform(0.18, 0.30)
    _cylinder(pen, -0.97, 0.97, half * 0.72, 85, material)
    _cylinder(pen, -0.90, 0.90, half, 130, material)
    kind = rng.random()
    if kind < 0.35:
        spot = rng.uniform(0.5, 0.75)
        pen.fill(_box(spot, spot + 0.09, half), 70, material)
        pen.fill(_box(spot, spot + 0.09, half * 0.6), 100, material)
    elif kind < 0.65:
        hole = arc(half * 0.45, 0.0, 6.1, centre=(rng.uniform(0.45, 0.72), 0.0), count=12)
        pen.fill(hole, 25, "soot")


def draw_fuse(pen: Pen, rng: np.random.Generator) -> None:
    """Cartridge fuse: a tube of glass or ceramic between two metal caps, with its wire where one can see through."""
    half = rng.uniform(0.24, 0.33)
    cap = rng.uniform(0.30, 0.42)
    body = "glass" if rng.random() < 0.6 else "ceramic"
    metal = pick(rng, ("zinc", "brass", "brass"))
    _cylinder(pen, -0.80, 0.80, half * 0.84, 110, body)
    if body == "glass":
        pen.fill(_box(-0.7, 0.7, half * 0.62), 96, "ground" if rng.random() < 0.3 else "glass")
        sag = np.linspace(-1, 1, 9)
        pen.wire(np.stack([sag * 0.66, rng.uniform(-0.08, 0.08) * (1 - sag**2)], axis=1), 0.045, 140, "soot")
    for left, right in ((-0.97, -0.97 + cap), (0.97 - cap, 0.97)):
        _cylinder(pen, left, right, half, 125, metal)


def _box(left: float, right: float, half: float) -> Points:
    """An axis-aligned rectangle from `left` to `right`, `half` up and down."""
    return np.array([[left, -half], [right, -half], [right, half], [left, half]])


def _cylinder(pen: Pen, left: float, right: float, half: float, top: int, material: str) -> None:
    """A lying cylinder: four steps of a half circle."""
    outlines = [_box(left, right, half * share) for share in (1.0, 0.84, 0.60, 0.32)]
    pen.relief(outlines, [round(top * rise) for rise in (0.45, 0.70, 0.88, 1.0)], material)


def _thread(pen: Pen, left: float, right: float, half: tuple[float, float], pitch: float, material: str) -> None:
    """Slanted ridges from `left` to `right`; `half` is the half width at both ends."""
    count = max(1, round((right - left) / pitch))
    for step in range(count):
        middle = left + (step + 0.5) * (right - left) / count
        reach = half[0] + (half[1] - half[0]) * (step + 0.5) / count + 0.025
        ridge = np.array([[-0.32, -reach], [0.05, -reach], [0.32, reach], [-0.05, reach]])
        pen.fill(ridge * np.array([pitch, 1.0]) + [middle, 0.0], 138, material)
        groove = ridge * np.array([pitch * 0.6, 0.92]) + [middle + pitch * 0.5, 0.0]
        pen.fill(groove, 62, material)
