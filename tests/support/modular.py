"""The generated supernet of layers of modules, and a numpy model of it that shares no code with onnxruntime.

Five `subset` groups of 8 modules and one `choice` group; `tools/supernets.py` writes it, with random weights.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edge_runtime.backends.onnx.modules import read_tensor
from edge_runtime.bundle import Bundle
from edge_runtime.gates import Gates
from tests.support.tiny import TinyParts

Float = npt.NDArray[Any]

TOOL = Path(__file__).resolve().parents[2] / "tools" / "supernets.py"
SIZE = 16
CLASSES = 1000
CHOICE = 2
"""The group that is no layer of modules."""


@lru_cache(maxsize=1)
def supernets() -> ModuleType:
    """The tool, as a module."""
    spec = importlib.util.spec_from_file_location("supernets", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def modular_bundle(path: Any, *, seed: int = 0, size: int = SIZE) -> Bundle:
    """Write the bundle for images of `size` px and return it."""
    bundle = supernets().modules(Path(path), size, seed)
    assert isinstance(bundle, Bundle)
    return bundle


def modular_parts(path: Any) -> TinyParts:
    """Fresh parts of the bundle, free to be damaged; `path` takes the whole one."""
    bundle = modular_bundle(path)
    return TinyParts(bundle.manifest, onnx.load_from_string(bundle.model_bytes), bundle.weights)


def modular_reference(bundle: Bundle, gates: Gates, x: Float) -> Float:
    """Logits [N, 1000] of `x` [N, 3, S, S] in float64: all modules computed, those that are off multiplied by 0."""
    model = onnx.load_from_string(bundle.model_bytes)
    w = {t.name: read_tensor(t, bundle.weights).astype(np.float64) for t in model.graph.initializer}
    h = np.maximum(_norm(_conv(x.astype(np.float64), w["stem.weight"], 2), w, "stem"), 0)
    for index, (_, stride) in enumerate(supernets().LAYERS):
        if index == CHOICE:
            h = _decided(h, w, gates.space.groups[CHOICE].labels[int(gates.values[CHOICE])])  # type: ignore[arg-type]
        bits = gates.values[index + (index >= CHOICE)]
        y = _layer(h, w, f"layer{index}", bits, stride)
        h = np.maximum(h + y if y.shape == h.shape else y, 0)
    return h.mean(axis=(2, 3)) @ w["head.weight"].T + w["head.bias"]


def _layer(h: Float, w: dict[str, Float], name: str, bits: Any, stride: int) -> Float:
    hidden = np.maximum(_conv(h, w[f"{name}.weight"], stride) + w[f"{name}.bias"][None, :, None, None], 0)
    mask = np.repeat(np.array(bits, np.float64), hidden.shape[1] // len(bits))
    return _norm(_conv(hidden * mask[None, :, None, None], w[f"{name}.back"]), w, f"{name}.project")


def _decided(h: Float, w: dict[str, Float], label: str) -> Float:
    if label == "skip":
        return h
    share = {"original": 1.0, "narrow75": 0.75, "narrow50": 0.5, "narrow25": 0.25}[label]
    at = f"unit2.{share}"
    y = np.maximum(_norm(_conv(h, w[f"{at}.reduce.weight"]), w, f"{at}.reduce"), 0)
    y = np.maximum(_norm(_conv(y, w[f"{at}.middle.weight"]), w, f"{at}.middle"), 0)
    return np.maximum(h + _norm(_conv(y, w[f"{at}.expand.weight"]), w, f"{at}.expand"), 0)


def _conv(x: Float, weight: Float, stride: int = 1) -> Float:
    """Padded to the same size, then every `stride`-th pixel."""
    side = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (side, side), (side, side)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows[:, :, ::stride, ::stride], weight, optimize=True)


def _norm(y: Float, w: dict[str, Float], name: str) -> Float:
    scale, shift, mean, var = (w[f"{name}.{part}"][None, :, None, None] for part in ("scale", "shift", "mean", "var"))
    return (y - mean) / np.sqrt(var + 1e-5) * scale + shift
