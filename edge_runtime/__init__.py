"""nnf-edge: one model file, many speeds. The public names; everything else is a quiet room.

Importing this package loads neither torch, onnx, onnxruntime nor numpy: every name is imported when it is first used.
It sets ``ORT_DISABLE_TELEMETRY=1``, because onnxruntime latches that decision when *it* is imported, and by default
sends telemetry and writes a device id below the user's cache.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle
    from edge_runtime.errors import (
        BackendError,
        BudgetError,
        BundleError,
        EdgeError,
        GateError,
        InputError,
        ProfileError,
        ResourceError,
        StateError,
        UsageError,
    )
    from edge_runtime.gates import Gates, GateSpace
    from edge_runtime.model import EdgeModel
    from edge_runtime.objectives import Budget, Frontier
    from edge_runtime.profiles import DeviceProfile

__all__ = [
    "BackendError",
    "Budget",
    "BudgetError",
    "Bundle",
    "BundleError",
    "DeviceProfile",
    "EdgeError",
    "EdgeModel",
    "Frontier",
    "GateError",
    "GateSpace",
    "Gates",
    "InputError",
    "ProfileError",
    "ResourceError",
    "StateError",
    "UsageError",
    "__version__",
]

__version__ = "0.1.0"

_ROOMS = {
    "Budget": "objectives",
    "Bundle": "bundle",
    "DeviceProfile": "profiles",
    "EdgeModel": "model",
    "Frontier": "objectives",
    "GateSpace": "gates",
    "Gates": "gates",
}


def _disable_telemetry() -> None:
    """Set the switch that onnxruntime reads at its import; say so when that import has already happened without it."""
    too_late = "onnxruntime" in sys.modules and os.environ.get("ORT_DISABLE_TELEMETRY") != "1"
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if too_late:
        warnings.warn(
            "onnxruntime was imported before edge_runtime, with its telemetry on: it may write a device id below "
            "~/.cache and send usage events. Import edge_runtime first, or set ORT_DISABLE_TELEMETRY=1 beforehand.",
            RuntimeWarning,
            stacklevel=3,
        )


_disable_telemetry()


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_ROOMS.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
