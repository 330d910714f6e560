"""What a work folder is for: said once, kept in its settings.json, and compared with what is said later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.elastify import ElasticOptions
from edge_runtime.bundle import Preprocessing
from edge_runtime.errors import BundleError, StateError, UsageError

__all__ = ["KIND", "ProjectSettings", "file_digest", "kept_settings", "new_settings"]

KIND = "project"
_REQUIRED = ("model", "data", "input_size")
_OFFERED = ElasticOptions()
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class ProjectSettings:
    """The network, its data, and how they belong together. Raises `UsageError` when built invalid."""

    model: str
    """The factory: an absolute path and a function, or a module and a function."""

    data: str
    """Absolute path of the images."""

    input_size: tuple[int, int, int]
    """Channels (3), height and width of the network's input."""

    weights: str = ""
    """sha256 of the weights file; empty where the factory gives a network that is trained already."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from pixels in [0, 1], per channel."""

    std: tuple[float, float, float] = IMAGENET_STD
    """What is left is divided by this, per channel."""

    classes: tuple[str, ...] = ()
    """In the order of the logits; empty: the data's own names."""

    widths: tuple[float, ...] = _OFFERED.widths
    """Ratios of inner channels of the narrower copies, in (0, 1)."""

    window: int = _OFFERED.window
    """Most units that one merged alternative replaces, 1 to 4."""

    skip: bool = _OFFERED.skip
    """Whether units that keep their shape may be skipped."""

    storage_ratio: float = _OFFERED.storage_ratio
    """Most bytes of the supernet as a multiple of the network's, above 1."""

    seed: int = 0

    def __post_init__(self) -> None:
        if self.input_size[0] != 3:
            raise UsageError(
                f"the input has {self.input_size[0]} channels",
                hint="a bundle takes camera frames, RGB: --input-size 3xHEIGHTxWIDTH",
            )
        if len(set(self.classes)) != len(self.classes):
            raise UsageError("a class name is given twice", hint="one name a line, in the order of the logits")
        self.preprocessing()
        self.elastic_options()

    def preprocessing(self) -> Preprocessing:
        """How a frame becomes the network's input."""
        _, height, width = self.input_size
        try:
            return Preprocessing(height=height, width=width, mean=self.mean, std=self.std)
        except BundleError as error:
            raise UsageError(error.message, hint="see --input-size, --mean and --std") from error

    def elastic_options(self) -> ElasticOptions:
        """What each unit is offered."""
        return ElasticOptions(widths=self.widths, window=self.window, skip=self.skip, storage_ratio=self.storage_ratio)


def kept_settings(work: Path, given: Mapping[str, Any]) -> ProjectSettings | None:
    """The settings of a work folder; None where it holds no project yet.

    Args:
        work: the folder.
        given: fields of `ProjectSettings` that the user named now; they have to agree.

    Raises:
        StateError: the folder was begun with other settings, or its file is damaged.
    """
    kept = _read(work / "settings.json")
    if kept is None:
        return None
    for name, value in given.items():
        if getattr(kept, name) != value:
            raise StateError(
                f"{work} was begun with another {_option(name)}",
                hint="choose another --work folder, or leave the option out to go on with this one",
            )
    return kept


def _option(name: str) -> str:
    """The option that sets a field."""
    return "--no-skip" if name == "skip" else f"--{name.replace('_', '-')}"


def new_settings(given: Mapping[str, Any]) -> ProjectSettings:
    """The settings of a new project. Raises `UsageError` where something is missing or cannot be meant."""
    if missing := [_option(name) for name in _REQUIRED if name not in given]:
        raise UsageError(f"a new project needs {', '.join(missing)}", hint="see nnf-build elastify --help")
    return ProjectSettings(**given)


def file_digest(path: Path, what: str) -> str:
    """sha256 of a file; `UsageError` where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"the {what} {str(path)!r} cannot be read: {error.strerror}", hint="check its path") from error


def _read(path: Path) -> ProjectSettings | None:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.pop("recipe") != KIND:
            raise StateError(f"{path.parent} holds a run of another recipe", hint="choose another --work folder")
        return ProjectSettings(**{name: tuple(v) if isinstance(v, list) else v for name, v in body.items()})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{path} cannot be read: {error}", hint="choose another --work folder") from error
