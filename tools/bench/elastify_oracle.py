"""The oracle of the bench: ImageNet MobileNetV2, fine-tuned on Tiny-ImageNet-100 in about ten minutes on two cores."""

# ruff: noqa: TID251 - a bench may use torch and the builder; only the runtime must not

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from elastify_data import AUGMENTATION, PIXELS, TinyImages, imagenet_rows

from builder import checkpoint
from builder.export import static_model
from builder.files import read_npz, write_atomically
from builder.fit import FitConfig, accuracy, fit
from builder.mobilenet import MobileNetV2, load_folded, recenter_batch_norms
from builder.runlog import RunLog
from edge_runtime.errors import StateError

__all__ = ["EPOCHS", "GRAPH", "RESULT", "load_oracle", "oracle_figures", "train_oracle"]

WEIGHTS = Path("weights") / "mobilenet_v2_1.0_224_folded_f16.npz"
CLASSIFIER = "52_conv"
"""Of the weights: ImageNet's own classifier, of which the rows of the 100 classes are the beginning."""

STATISTICS_IMAGES = 512
EPOCHS, BATCH, LEARNING_RATE = 4, 64, 3e-4
"""Ten minutes on two cores. At three times the rate the pretrained features are lost: 6 points less after a minute."""

CAVEAT = "the set was made of images of ImageNet, which the weights may have seen: accuracies are too good"

RESULT, PARTIAL, GRAPH, FIGURES = "oracle.pt", "oracle.partial.pt", "oracle.onnx", "oracle.json"


def train_oracle(data: Path, images: TinyImages, work: Path, log: RunLog, *, seed: int, epochs: int = EPOCHS) -> None:
    """Fine-tune, export and describe the oracle in `work`; goes on where an earlier run stopped.

    Test accuracy is written down for the record; nothing is chosen by it.

    Raises:
        InputError: the weights are missing or of another network.
        StateError: the checkpoint is of other settings.
    """
    config = FitConfig(epochs, BATCH, LEARNING_RATE, augmentation=AUGMENTATION, seed=seed)
    model = _initial(data, images, seed)
    with log.step("oracle") as figures:
        figures["begun_at"] = accuracy(model, images.validation)
        figures |= fit(model, images.train, config, log=log, checkpoint_path=work / PARTIAL)
        figures |= {f"{name}_accuracy": accuracy(model, getattr(images, name)) for name in ("validation", "test")}
    write_atomically(work / GRAPH, static_model(model, images.validation.inputs(slice(0, 2))))
    about = {"epochs": epochs, "batch_size": BATCH, "learning_rate": LEARNING_RATE, "pixels": PIXELS, "seed": seed}
    about |= {"network": "MobileNetV2 1.0, ImageNet weights, fine-tuned", "train_images": len(images.train)}
    write_atomically(work / FIGURES, json.dumps(about | {"caveat": CAVEAT} | figures, indent=1).encode())
    content: dict[str, Any] = {"model": model.state_dict(), "classes": len(images.class_names), "pixels": PIXELS}
    checkpoint.save(work / RESULT, content)  # last: what says that the oracle is done
    (work / PARTIAL).unlink(missing_ok=True)


def _initial(data: Path, images: TinyImages, seed: int) -> MobileNetV2:
    """ImageNet weights with the classifier's rows of these classes, and BatchNorm statistics of these images."""
    torch.manual_seed(seed)
    model = MobileNetV2(len(images.class_names), resolution=PIXELS)
    load_folded(model, data / WEIGHTS)
    rows = imagenet_rows(data, images.class_names)
    arrays = read_npz(
        data / WEIGHTS, (f"{CLASSIFIER}_w", f"{CLASSIFIER}_b"), hint="these are the folded MobileNetV2 1.0 weights"
    )
    weight, bias = (arrays[f"{CLASSIFIER}_{part}"].astype(np.float32) for part in "wb")
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(weight.reshape(len(weight), -1)[rows]))
        model.classifier.bias.copy_(torch.from_numpy(bias[rows]))
    chosen = np.arange(min(STATISTICS_IMAGES, len(images.train)))
    recenter_batch_norms(model, (images.train.inputs(part) for part in np.array_split(chosen, -(-len(chosen) // 64))))
    return model


def load_oracle(work: Path) -> MobileNetV2:
    """The trained oracle, frozen. Raises `StateError` where there is none."""
    content = checkpoint.load(work / RESULT)
    if content is None:
        raise StateError(f"there is no oracle in {work}", hint="train it first: elastify.py oracle")
    model = MobileNetV2(content["classes"], resolution=content["pixels"])
    model.load_state_dict(content["model"])
    return model.eval().requires_grad_(False)


def oracle_figures(work: Path) -> dict[str, Any]:
    """What `train_oracle` wrote about the oracle in `work`."""
    return dict(json.loads((work / FIGURES).read_text(encoding="utf-8")))
