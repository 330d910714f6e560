"""A set of plain images in the container of Tiny-ImageNet."""

import io

import numpy as np
from PIL import Image

CLASSES, TRAIN_EACH, TEST_EACH = 3, 24, 2


def write_images(folder):
    """Green tells the class, red the number in the class; returns the folder."""
    arrays = {}
    for part, each in (("train", TRAIN_EACH), ("test", TEST_EACH)):
        files = [_jpeg((8 * number, 60 * label, 0)) for label in range(CLASSES) for number in range(each)]
        arrays[f"{part}_jpeg"] = np.concatenate(files)
        arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"{part}_fine"] = np.repeat(np.arange(CLASSES, dtype=np.uint8), each)
    np.savez(folder / "tinyimagenet100_64px.npz", fine_names=np.array(["cat", "dog", "owl"]), **arrays)
    return folder


def _jpeg(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "JPEG", quality=95)
    return np.frombuffer(buffer.getvalue(), np.uint8)
