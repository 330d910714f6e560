"""From heights and materials to light: Lambert, mirror-like metal, highlights, and the shadows on the ground."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from builder.scenes.canvas import Canvas
from builder.scenes.ground import Field, rgb, smooth_noise
from builder.scenes.materials import Palette

__all__ = ["Light", "shade"]

_SLOPE = 0.05
"""Surface slope per height level and pixel of the canvas."""


@dataclass(frozen=True, slots=True)
class Light:
    """One lamp or sun, and the sky around it."""

    azimuth: float
    """Where the light comes from in the image plane, radians."""
    elevation: float
    """Height above the ground, radians."""
    direct: tuple[float, float, float]
    """Linear RGB of the lamp or sun."""
    sky: tuple[float, float, float]
    """Linear RGB of the light from all around."""
    gloss: float
    """Strength of highlights; 1 is dry."""
    softness: float
    """Blur of shadows in shares of the image side."""

    @property
    def direction(self) -> tuple[float, float, float]:
        """Unit vector towards the light: x right, y down, z up from the ground."""
        flat = math.cos(self.elevation)
        return (flat * math.cos(self.azimuth), flat * math.sin(self.azimuth), math.sin(self.elevation))


def shade(canvas: Canvas, ground: Field, palette: Palette, light: Light, rng: np.random.Generator) -> Field:
    """Lights a canvas and lays it over the ground; linear RGB, float32 [3, S, S], S the ground's side."""
    size = ground.shape[-1]
    over = canvas.side // size
    material = np.asarray(canvas.material).ravel()
    solid = np.flatnonzero(material)
    pixel = (solid // (canvas.side * over)) * size + (solid % canvas.side) // over
    wobble = smooth_noise(size, 5, rng).ravel()[pixel]
    lit = _lit(_normals(canvas, solid), material[solid], wobble, palette, light)
    share = 1.0 / (over * over)
    sums = [np.bincount(pixel, plane, size * size) * share for plane in lit]
    colour = np.stack(sums).astype(np.float32).reshape(3, size, size)
    alpha = (np.bincount(pixel, minlength=size * size) * share).astype(np.float32).reshape(size, size)
    sun, near = _shadows(canvas, size, light)
    falling = rgb(*light.direct) * (light.direction[2] * sun) + rgb(*light.sky) * near
    return ground * falling * (1.0 - alpha) + colour


def _lit(
    normals: tuple[Field, Field, Field], material: npt.NDArray[np.uint8], wobble: Field, palette: Palette, light: Light
) -> Field:
    """Colour of the drawn pixels of the canvas, float32 [3, n]; the bare ground is not computed."""
    x, y, z = light.direction
    nx, ny, nz = normals
    diffuse = np.maximum(nx * x + ny * y + nz * z, 0.0)
    half = math.sqrt(x * x + y * y + (z + 1) ** 2)
    facing = np.maximum((nx * x + ny * y + nz * (z + 1)) / half, 0.0)
    shine = facing * facing
    shine = shine * shine
    shine = shine * shine * shine
    shine = shine * shine
    mirror = np.clip(0.5 + 0.9 * (nx * x + ny * y) + 0.22 * wobble, 0.05, 1.25)
    metal = palette.metal[material]
    sun_share = diffuse * (1.0 - 0.6 * metal)
    sky_share = (1.0 - metal) * (0.35 + 0.65 * nz) + 1.6 * metal * mirror
    highlight = shine * (0.06 + 0.75 * metal) * light.gloss
    lit = np.empty((3, len(material)), dtype=np.float32)
    for plane, direct, sky, albedo in zip(lit, light.direct, light.sky, palette.rgb.T, strict=True):
        plane[:] = albedo[material] * (direct * sun_share + sky * sky_share)
        plane += (direct * np.sqrt(albedo))[material] * highlight
    return lit


def _normals(canvas: Canvas, pixels: npt.NDArray[np.intp]) -> tuple[Field, Field, Field]:
    """Unit surface normals at flat pixel indices of the canvas, three float32 [n]."""
    smooth = np.asarray(canvas.height.filter(ImageFilter.BoxBlur(canvas.side / 120))).ravel().astype(np.int16)
    slope = np.float32(_SLOPE * canvas.side / 192)
    last = len(smooth) - 1
    nx = (smooth[np.maximum(pixels - 1, 0)] - smooth[np.minimum(pixels + 1, last)]) * slope
    ny = (smooth[np.maximum(pixels - canvas.side, 0)] - smooth[np.minimum(pixels + canvas.side, last)]) * slope
    nz = 1.0 / np.sqrt(nx * nx + ny * ny + 1.0)
    return nx * nz, ny * nz, nz


def _shadows(canvas: Canvas, size: int, light: Light) -> tuple[Field, Field]:
    """Share of direct light and of sky light that reaches the ground, float32 [size, size] each."""
    tall = canvas.height.resize((size, size), Image.Resampling.BOX)
    reach = 0.05 * size / math.tan(light.elevation)
    dx, dy = -math.cos(light.azimuth) * reach, -math.sin(light.azimuth) * reach
    moved = tall.transform((size, size), Image.Transform.AFFINE, (1, 0, -dx, 0, 1, -dy), Image.Resampling.BILINEAR)
    cast = np.asarray(moved.filter(ImageFilter.GaussianBlur(light.softness * size)), dtype=np.float32)
    around = np.asarray(tall.filter(ImageFilter.GaussianBlur(0.03 * size)), dtype=np.float32)
    return 1.0 - 0.85 * np.minimum(cast / 60.0, 1.0), 1.0 - 0.6 * np.minimum(around / 120.0, 1.0)
