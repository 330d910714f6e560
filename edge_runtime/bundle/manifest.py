"""What a bundle says about its model: values that cannot be built invalid. Their JSON form is in `schema.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edge_runtime.errors import BundleError
from edge_runtime.gates import GateSpace

__all__ = ["DTYPES", "Manifest", "Preprocessing", "Provenance", "Task", "TensorSpec"]

DTYPES = ("float32", "int64")
MAX_TEXT = 1000
MAX_TENSORS = 64
MAX_RANK = 8
MAX_ELEMENTS = 2**28
MAX_CLASSES = 65_536
MAX_PIXELS = 8192
MAX_FIGURES = 1000


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, type and shape of one input or output of the graph. Raises `BundleError` when built invalid."""

    name: str
    """As in the graph, e.g. ``image``."""

    dtype: str
    """`float32` or `int64`."""

    shape: tuple[int | None, ...]
    """Dimensions of 1 or more; the first may be None, the free batch. Example: ``(None, 3, 64, 64)``."""

    def __post_init__(self) -> None:
        check_text(self.name, "a tensor name", limit=200)
        if self.dtype not in DTYPES:
            raise BundleError(f"tensor {self.name!r} has dtype {self.dtype!r}, not one of {', '.join(DTYPES)}")
        object.__setattr__(self, "shape", tuple(self.shape))
        known = self.shape[1:] if self.shape and self.shape[0] is None else self.shape
        if len(self.shape) > MAX_RANK or not all(type(d) is int and d >= 1 for d in known):
            raise BundleError(f"tensor {self.name!r} has the shape {self.shape}; only the first dimension may be free")
        if math.prod(d for d in known if d is not None) > MAX_ELEMENTS:
            raise BundleError(f"tensor {self.name!r} of shape {self.shape} has more than {MAX_ELEMENTS} elements")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a uint8 RGB frame to the float32 NCHW input: resize, then ``(pixel * scale - mean) / std`` per channel."""

    height: int
    """Pixels, 1 to 8192."""

    width: int
    """Pixels, 1 to 8192."""

    mean: tuple[float, float, float]
    """Per channel R, G, B, in units after `scale`."""

    std: tuple[float, float, float]
    """Per channel R, G, B, above 0, in units after `scale`."""

    scale: float = 1.0 / 255.0
    """Multiplied with the pixel (0 to 255) first; above 0."""

    resize: Literal["bilinear"] = "bilinear"
    """How a frame of another size is resized: bilinear with antialiasing."""

    def __post_init__(self) -> None:
        for side in (self.height, self.width):
            if type(side) is not int or not 1 <= side <= MAX_PIXELS:
                raise BundleError(f"preprocessing has a side of {side!r} pixels, not 1 to {MAX_PIXELS}")
        for name in ("mean", "std"):
            values = tuple(_finite(value, f"preprocessing {name}") for value in getattr(self, name))
            if len(values) != 3:
                raise BundleError(f"preprocessing {name} has {len(values)} values, not 3")
            object.__setattr__(self, name, values)
        object.__setattr__(self, "scale", _finite(self.scale, "preprocessing scale"))
        if min(*self.std, self.scale) <= 0:
            raise BundleError(f"preprocessing has std {self.std} and scale {self.scale}; all must be above 0")
        if self.resize != "bilinear":
            raise BundleError(f"preprocessing has resize {self.resize!r}, not 'bilinear'")


@dataclass(frozen=True, slots=True)
class Task:
    """What the outputs mean. Raises `BundleError` when built invalid."""

    kind: Literal["classification"]
    """`classification`: the first output holds one logit per class."""

    class_names: tuple[str, ...]
    """In the order of the logits; unique, 1 to 65536."""

    def __post_init__(self) -> None:
        if self.kind != "classification":
            raise BundleError(f"task kind {self.kind!r} is not known", hint="this version knows classification")
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if not 1 <= len(self.class_names) <= MAX_CLASSES:
            raise BundleError(f"a task has 1 to {MAX_CLASSES} class names, got {len(self.class_names)}")
        for name in self.class_names:
            check_text(name, "a class name", limit=200)
        if len(set(self.class_names)) != len(self.class_names):
            raise BundleError("a class name is given twice")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the model comes from; for people and reports, never for decisions."""

    oracle: str
    """The network that was made elastic, e.g. ``mobilenet_v2 1.0 112``."""

    data: str
    """What it was trained on, with its licence."""

    recipe: str
    """The recipe that built it, e.g. ``nnf-build demo``."""

    seed: int
    """The seed of that run, 0 or more."""

    versions: Mapping[str, str]
    """Library to version, e.g. ``{"torch": "2.9.0"}``."""

    command: str
    """The command that makes it again."""

    created_at: str
    """UTC, ISO 8601; the recipe's own constant where the bytes must repeat."""

    def __post_init__(self) -> None:
        for name in ("oracle", "data", "recipe", "command", "created_at"):
            check_text(getattr(self, name), f"provenance {name}")
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise BundleError(f"provenance seed {self.seed!r} is not a number from 0 to 2^63 - 1")
        for library, version in self.versions.items():
            check_text(library, "a library name")
            check_text(version, f"the version of {library}")
        object.__setattr__(self, "versions", dict(sorted(self.versions.items())))


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything the runtime knows of a model without opening the graph. Raises `BundleError` when built invalid."""

    name: str
    """For people, e.g. ``nnf-demo-parts``."""

    space: GateSpace
    """The gate groups, in the order of the flat vector that the graph is fed."""

    inputs: tuple[TensorSpec, ...]
    """The graph's inputs without the gates; the first is the image, float32 ``(None, 3, height, width)``."""

    outputs: tuple[TensorSpec, ...]
    """The graph's outputs; for classification the first is ``(None, classes)``."""

    gate_input: str
    """Name of the int64 input of shape ``(space.width,)`` that takes `Gates.vector()`."""

    preprocessing: Preprocessing
    """How a frame becomes the image input."""

    task: Task
    """What the outputs mean."""

    prior: tuple[tuple[float, ...], ...]
    """Per group and alternative the expected loss of quality, 0 or more, found by the builder; 0 for the original."""

    provenance: Provenance
    """Where the model comes from."""

    figures: Mapping[str, float] = field(default_factory=dict)
    """Further figures of the build for people, e.g. ``{"oracle_accuracy": 0.912}``."""

    def __post_init__(self) -> None:
        check_text(self.name, "the model's name", limit=200)
        for name in ("inputs", "outputs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not 1 <= len(getattr(self, name)) <= MAX_TENSORS:
                raise BundleError(f"a manifest has 1 to {MAX_TENSORS} {name}, got {len(getattr(self, name))}")
        check_text(self.gate_input, "the gate input's name", limit=200)
        names = [self.gate_input, *(spec.name for spec in (*self.inputs, *self.outputs))]
        if len(set(names)) != len(names):
            raise BundleError(f"two tensors share a name: {', '.join(names)}")
        self._check_shapes()
        self._check_prior()
        if len(self.figures) > MAX_FIGURES:
            raise BundleError(f"a manifest has at most {MAX_FIGURES} figures, got {len(self.figures)}")
        figures = {
            check_text(name, "a figure's name"): _finite(v, f"figure {name}") for name, v in self.figures.items()
        }
        object.__setattr__(self, "figures", dict(sorted(figures.items())))

    def _check_shapes(self) -> None:
        image = TensorSpec(
            self.inputs[0].name, "float32", (None, 3, self.preprocessing.height, self.preprocessing.width)
        )
        if self.inputs[0] != image:
            raise BundleError(f"the first input {self.inputs[0]} does not fit the preprocessing, which makes {image}")
        if any(spec.dtype != "float32" or not spec.shape or spec.shape[0] is not None for spec in self.outputs):
            raise BundleError("every output is float32 with a free batch dimension first")
        if self.outputs[0].shape != (None, len(self.task.class_names)):
            raise BundleError(f"the first output {self.outputs[0]} is not one logit for each of the classes")

    def _check_prior(self) -> None:
        rows = tuple(tuple(_finite(value, "a prior") for value in row) for row in self.prior)
        if [len(row) for row in rows] != [group.size for group in self.space.groups]:
            raise BundleError("the prior does not have one value for each alternative of each gate group")
        for group, row in zip(self.space.groups, rows, strict=True):
            if min(row) < 0 or (group.kind == "choice" and row[0] != 0):
                raise BundleError(f"the prior of gate {group.name!r} is {row}; it starts at 0 and is never below 0")
        object.__setattr__(self, "prior", rows)


def check_text(value: object, what: str, *, limit: int = MAX_TEXT) -> str:
    """`value` as printable text of 1 to `limit` characters (it may reach a terminal), else `BundleError`."""
    if not isinstance(value, str) or not 1 <= len(value) <= limit or not value.isprintable():
        shown = repr(value)[:60]
        raise BundleError(f"{what} is {shown}", hint=f"it must be printable text of 1 to {limit} characters")
    return value


def _finite(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BundleError(f"{what} is {value!r}, not a finite number")
    return float(value)
