"""Day, night, rain, haze and blur: the light of a scene, and how the camera sees it."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from builder.scenes.ground import Field, rgb, smooth_noise
from builder.scenes.shading import Light

__all__ = ["CONDITIONS", "expose", "make_light", "wet"]

CONDITIONS: tuple[str, ...] = ("day", "night", "rain", "haze", "blur")
"""Names of the conditions, in the order of their indices."""


def make_light(condition: str, azimuth: float, elevation: float, rng: np.random.Generator) -> Light:
    """The light of one condition; the sun's place is given, so that one scene can be seen in all of them."""
    warm = rng.uniform(-0.08, 0.12)
    tint = np.array([1.0 + warm, 1.0, 1.0 - warm])
    if condition == "night":
        lamp = np.array([(1.0, 0.72, 0.42), (0.75, 0.9, 1.0), (1.0, 0.95, 0.85)][int(rng.integers(3))])
        return _light(azimuth, elevation * 0.7, lamp * rng.uniform(0.7, 1.1), (0.05, 0.06, 0.10), 1.3, 0.012)
    if condition == "rain":
        return _light(azimuth, elevation, tint * rng.uniform(0.15, 0.40), (0.62, 0.66, 0.72), 4.0, 0.05)
    if condition == "haze":
        return _light(azimuth, elevation, tint * rng.uniform(0.30, 0.60), (0.62, 0.63, 0.64), 0.8, 0.04)
    strength = rng.uniform(0.15, 1.35)
    return _light(azimuth, elevation, tint * strength, (0.48, 0.52, 0.60), 1.0, 0.05 - 0.028 * strength)


def wet(ground: Field, condition: str, rng: np.random.Generator) -> Field:
    """The ground as the weather leaves it: under rain it is darker and holds puddles that show the sky."""
    if condition != "rain":
        return ground
    puddle = np.clip(smooth_noise(ground.shape[-1], 4, rng) * 1.5 - rng.uniform(0.4, 1.8), 0.0, 0.7)
    return ground * 0.62 * (1.0 - puddle) + rgb(0.24, 0.25, 0.27) * puddle


def expose(scene: Field, condition: str, rng: np.random.Generator) -> np.ndarray:
    """Takes the picture: linear light float32 [3, S, S] to uint8 [S, S, 3] as the camera stores it."""
    return _CAMERAS[condition](scene, rng)


def _light(
    azimuth: float, elevation: float, direct: np.ndarray, sky: tuple[float, float, float], gloss: float, softness: float
) -> Light:
    red, green, blue = (float(value) for value in direct)
    return Light(azimuth, elevation, (red, green, blue), sky, gloss, softness)


def _day(scene: Field, rng: np.random.Generator) -> np.ndarray:
    return _develop(scene * rng.uniform(0.75, 1.45), 0.006, 0.012, rng)


def _blur(scene: Field, rng: np.random.Generator) -> np.ndarray:
    """Motion blur: the mean over a straight or slightly bent path of the camera."""
    size = scene.shape[-1]
    reach = size * rng.uniform(0.03, 0.07)
    angle, bend = rng.uniform(0, 2 * math.pi), rng.uniform(-0.4, 0.4)
    steps = max(5, round(reach * 1.3))
    margin = math.ceil(reach * 0.6) + 1
    padded = np.pad(scene, ((0, 0), (margin, margin), (margin, margin)), mode="edge")
    total = np.zeros_like(scene)
    for share in np.linspace(-0.5, 0.5, steps):
        turn = angle + bend * share
        dx, dy = round(reach * share * math.cos(turn)), round(reach * share * math.sin(turn))
        total += padded[:, margin + dy : margin + dy + size, margin + dx : margin + dx + size]
    return _develop(total * (rng.uniform(0.75, 1.3) / steps), 0.006, 0.012, rng)


def _haze(scene: Field, rng: np.random.Generator) -> np.ndarray:
    """Koschmieder: contrast lost to airlight by a depth that grows across the frame, then scattering blur."""
    size = scene.shape[-1]
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    depth = 1.0 + 0.5 * (axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle))
    depth += 0.12 * smooth_noise(size, 3, rng)
    seen = np.exp(-rng.uniform(0.35, 0.80) * depth)
    airlight = rng.uniform(0.42, 0.72) * rgb(rng.uniform(0.97, 1.03), 1.0, rng.uniform(0.99, 1.06))
    return _develop(scene * seen + airlight * (1 - seen), 0.006, 0.010, rng, blur_px=size * rng.uniform(0.006, 0.014))


def _rain(scene: Field, rng: np.random.Generator) -> np.ndarray:
    """Bright streaks of falling drops over the wet scene, and now and then a drop on the lens."""
    streaks = _streaks(scene.shape[-1], rng)
    picture = _develop(scene * rng.uniform(0.9, 1.35) * (1 - 0.4 * streaks) + 0.42 * streaks, 0.008, 0.014, rng)
    if rng.random() < 0.4:
        return _lens_drop(picture, rng)
    return picture


def _streaks(size: int, rng: np.random.Generator) -> Field:
    """Coverage by falling drops, float32 [size, size] in 0..1."""
    layer = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(layer)
    slant = rng.uniform(-0.5, 0.5)
    for _ in range(int(rng.integers(14, 40))):
        x, y = rng.uniform(-0.2, 2.2) * size, rng.uniform(-0.3, 2.0) * size
        length = size * rng.uniform(0.12, 0.5)
        draw.line(
            (x, y, x + slant * length, y + length), fill=int(rng.integers(70, 230)), width=int(rng.integers(1, 3))
        )
    return np.asarray(layer.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255


def _lens_drop(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A drop on the lens: a soft disc that shows the scene upside down and out of focus."""
    size = len(picture)
    image = Image.fromarray(picture)
    upside = image.transpose(Image.Transpose.ROTATE_180).filter(ImageFilter.GaussianBlur(size * 0.04))
    mask = Image.new("L", (size, size))
    x, y, radius = rng.uniform(0, size), rng.uniform(0, size), size * rng.uniform(0.05, 0.12)
    ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=215)
    image.paste(upside, (0, 0), mask.filter(ImageFilter.GaussianBlur(size * 0.015)))
    return np.asarray(image)


def _night(scene: Field, rng: np.random.Generator) -> np.ndarray:
    """Little light in a cone, shot and read noise of a high gain, and at times the glare of a lamp in the frame."""
    size = scene.shape[-1]
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    spot = rng.uniform(-0.3, 0.3, 2)
    away = (axis[None, :] - spot[0]) ** 2 + (axis[:, None] - spot[1]) ** 2
    cone = 0.28 + np.exp(-away / rng.uniform(0.06, 0.30))
    dim = scene * cone * rng.uniform(0.65, 1.3)
    if rng.random() < 0.45:
        dim = dim + _glare(axis, rng)
    return _develop(dim, 0.008, 0.045, rng)


def _glare(axis: Field, rng: np.random.Generator) -> Field:
    """Veiling glare of a lamp near the rim: a bright core, a wide halo, and one streak through it."""
    angle = rng.uniform(0, 2 * math.pi)
    dx = axis[None, :] - 0.55 * math.cos(angle)
    dy = axis[:, None] - 0.55 * math.sin(angle)
    away = dx * dx + dy * dy
    across = dx * math.sin(angle * 3) + dy * math.cos(angle * 3)
    glow = 0.9 * np.exp(-away / 0.006) + 0.10 * np.exp(-away / 0.08)
    glow += 0.12 * np.exp(-(across**2) / 0.0006 - away / 0.15)
    return glow * (rgb(1.0, 0.80, 0.50) if rng.random() < 0.5 else rgb(0.75, 0.88, 1.0))


def _develop(
    light: Field, read_noise: float, shot_noise: float, rng: np.random.Generator, blur_px: float = 0.0
) -> np.ndarray:
    """Sensor and tone curve: noise that grows with the root of the light, a soft shoulder, gamma 2, uint8."""
    light = np.maximum(light, 0.0)
    if blur_px:
        light = np.stack([_soften(plane, blur_px) for plane in light])
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    seen = np.maximum(light + noise * (read_noise + shot_noise * np.sqrt(light)), 0.0)
    curve = np.sqrt(seen * (1.0 + 0.15 * seen) / (1.0 + 0.55 * seen))
    return np.ascontiguousarray(np.minimum(curve * 275.0, 255.0).astype(np.uint8).transpose(1, 2, 0))


def _soften(plane: Field, blur_px: float) -> Field:
    coded = Image.fromarray(np.minimum(np.sqrt(plane) * 220.0, 255.0).astype(np.uint8))
    return (np.asarray(coded.filter(ImageFilter.GaussianBlur(blur_px)), dtype=np.float32) / 220.0) ** 2


_CAMERAS: dict[str, Callable[[Field, np.random.Generator], np.ndarray]] = {
    "day": _day,
    "night": _night,
    "rain": _rain,
    "haze": _haze,
    "blur": _blur,
}
