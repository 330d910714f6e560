"""What things are made of: one small table of reflectances, shared by parts, clutter and ground."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["MATERIALS", "Palette", "palette", "pick"]


@dataclass(frozen=True, slots=True)
class _Material:
    rgb: tuple[float, float, float]
    """Linear reflectance, 0..1."""
    metal: float
    """Share of the light that is reflected like a mirror, 0..1."""


_TABLE: dict[str, _Material] = {
    "ground": _Material((0.0, 0.0, 0.0), 0.0),
    "steel": _Material((0.44, 0.45, 0.47), 0.75),
    "zinc": _Material((0.58, 0.60, 0.62), 0.60),
    "brass": _Material((0.62, 0.44, 0.14), 0.70),
    "copper": _Material((0.60, 0.30, 0.17), 0.70),
    "black oxide": _Material((0.060, 0.062, 0.070), 0.35),
    "rust": _Material((0.27, 0.115, 0.050), 0.08),
    "rubber": _Material((0.030, 0.030, 0.032), 0.16),
    "nylon": _Material((0.66, 0.65, 0.60), 0.12),
    "black nylon": _Material((0.040, 0.040, 0.044), 0.20),
    "red plastic": _Material((0.46, 0.045, 0.040), 0.18),
    "green plastic": _Material((0.050, 0.28, 0.10), 0.18),
    "blue plastic": _Material((0.040, 0.12, 0.42), 0.18),
    "yellow plastic": _Material((0.62, 0.42, 0.04), 0.18),
    "glass": _Material((0.13, 0.27, 0.25), 0.35),
    "ceramic": _Material((0.72, 0.66, 0.52), 0.12),
    "soot": _Material((0.015, 0.015, 0.017), 0.05),
    "leaf": _Material((0.17, 0.15, 0.035), 0.04),
    "dry leaf": _Material((0.25, 0.13, 0.045), 0.04),
    "paper": _Material((0.56, 0.54, 0.48), 0.02),
    "card": _Material((0.34, 0.24, 0.14), 0.02),
    "stone": _Material((0.25, 0.24, 0.22), 0.03),
    "pale stone": _Material((0.42, 0.40, 0.36), 0.03),
    "dark stone": _Material((0.11, 0.105, 0.10), 0.05),
}

MATERIALS: dict[str, int] = {name: index for index, name in enumerate(_TABLE)}
"""Material name -> its index on a `Canvas`; 0 is the bare ground."""


@dataclass(frozen=True, slots=True)
class Palette:
    """The materials of one scene: the table with a little variation from piece to piece."""

    rgb: npt.NDArray[np.float32]
    """Linear reflectance, float32 [M, 3]."""
    metal: npt.NDArray[np.float32]
    """Mirror share, float32 [M]."""


def palette(rng: np.random.Generator) -> Palette:
    """Draws one scene's materials: brightness +-30 %, hue +-6 %, wear of the polish."""
    rgb = np.array([m.rgb for m in _TABLE.values()], dtype=np.float32)
    metal = np.array([m.metal for m in _TABLE.values()], dtype=np.float32)
    brightness = rng.uniform(0.7, 1.3, (len(rgb), 1))
    hue = rng.uniform(0.94, 1.06, rgb.shape)
    wear = rng.uniform(0.55, 1.0, len(metal))
    return Palette((rgb * brightness * hue).astype(np.float32), (metal * wear).astype(np.float32))


def pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    """Draws one of a few names, all equally likely; a name given twice is twice as likely."""
    return names[int(rng.integers(len(names)))]
