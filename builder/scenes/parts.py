"""The sixteen parts, each drawn from a few random dimensions in a unit frame of about [-1, 1] along its long side.

Several share outlines and materials on purpose (washer, o-ring, nut and bearing; bolt, screw and rivet; pin and fuse):
what tells them apart is small, so a network has to spend compute on it.
"""

import numpy as np

from builder.scenes.canvas import Pen
from builder.scenes.long_parts import draw_bolt, draw_fuse, draw_pin, draw_rivet, draw_screw
from builder.scenes.round_parts import draw_bearing, draw_gear, draw_nut, draw_o_ring, draw_washer, draw_wing_nut
from builder.scenes.wire_parts import draw_bracket, draw_cable_tie, draw_circlip, draw_hook, draw_spring

__all__ = ["CLASSES", "draw_part"]

_PARTS = {
    "bolt": draw_bolt,
    "screw": draw_screw,
    "nut": draw_nut,
    "wing nut": draw_wing_nut,
    "washer": draw_washer,
    "o-ring": draw_o_ring,
    "bearing": draw_bearing,
    "gear": draw_gear,
    "circlip": draw_circlip,
    "spring": draw_spring,
    "hook": draw_hook,
    "bracket": draw_bracket,
    "rivet": draw_rivet,
    "pin": draw_pin,
    "fuse": draw_fuse,
    "cable tie": draw_cable_tie,
}

CLASSES: tuple[str, ...] = tuple(_PARTS)
"""Class names in label order."""


def draw_part(label: int, pen: Pen, rng: np.random.Generator) -> None:
    """Draws one part of class `CLASSES[label]` with random dimensions and materials."""
    _PARTS[CLASSES[label]](pen, rng)
