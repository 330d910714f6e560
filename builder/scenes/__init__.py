"""Inspection scenes made by the project itself: small hardware parts on textured ground, in five conditions.

Seeded, numpy and Pillow only; labels and boxes are known exactly because they are drawn. Feeds the demo and the tests
on any machine.
"""

from builder.scenes.conditions import CONDITIONS
from builder.scenes.parts import CLASSES
from builder.scenes.render import Scene, render, render_set

__all__ = ["CLASSES", "CONDITIONS", "Scene", "render", "render_set"]
