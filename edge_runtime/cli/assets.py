"""The model and the images that come with the package."""

from __future__ import annotations

from pathlib import Path

from edge_runtime.errors import StateError

__all__ = ["demo_bundle", "demo_images"]

_FOLDER = Path(__file__).resolve().parents[1] / "assets"


def demo_bundle() -> str:
    """Path of the bundled model. Raises `StateError` where the installation lacks it."""
    return _asset("demo.nnf")


def demo_images() -> str:
    """Path of the labelled images that go with the model. Raises `StateError` where the installation lacks them."""
    return _asset("demo_images.npz")


def _asset(name: str) -> str:
    path = _FOLDER / name
    if not path.is_file():
        raise StateError(f"this installation has no {name}", hint="install it again, or name a bundle of your own")
    return str(path)
