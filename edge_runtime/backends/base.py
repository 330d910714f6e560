"""The seam between the runtime and the libraries that run a graph: what a session is, how it is opened and checked.

A backend implements `Session` and nothing else; the rest of the runtime never asks which one it got. Gates travel with
each run, so that a swap can never tear a frame and two threads may run two subnets of one session at the same time.
This file imports numpy only; `fake.py` implements the seam without any native library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import TensorSpec
from edge_runtime.checks import whole
from edge_runtime.errors import BackendError, GateError, InputError, UsageError
from edge_runtime.gates import Gates, GateSpace

__all__ = [
    "CODES_TOLERANCE",
    "Array",
    "Beginning",
    "DamagedError",
    "KernelProfile",
    "Kernels",
    "RefusedError",
    "Session",
    "SessionOptions",
    "SessionParts",
    "SharedFeatures",
    "check_gates",
    "check_inputs",
    "random_inputs",
    "relative_difference",
]

Array: TypeAlias = npt.NDArray[Any]

Beginning: TypeAlias = tuple[int, ...]
"""Where a beginning ends, and the decisions in it: the same for all subnets that have it."""

MAX_THREADS = 1024

CODES_TOLERANCE = 0.1
"""Largest `relative_difference` of an output between two forms of a subnet that computes in 8 bits: float32 summed in
another order brings single values over the edge between two codes, which was seen to make 1 to 3 %."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a graph is run. Part of every cache key. Raises `UsageError` when built invalid."""

    threads: int = 1
    """Threads inside one operator, 1 to 1024; always given to the library, whose own default ignores containers."""

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """Execution providers in order of preference, at least one."""

    spinning: bool = False
    """Whether idle worker threads burn CPU time while they wait; off, because it steals from the application."""

    def __post_init__(self) -> None:
        if type(self.threads) is not int or not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(f"threads is {self.threads!r}", hint=f"give a whole number from 1 to {MAX_THREADS}")
        if not self.providers or isinstance(self.providers, str) or not all(self.providers):
            raise UsageError(f"providers is {self.providers!r}", hint='give a tuple such as ("CPUExecutionProvider",)')

    def key(self) -> str:
        """One text form for cache keys and reports, e.g. ``CPUExecutionProvider/t2``."""
        return f"{'+'.join(self.providers)}/t{self.threads}{'/spin' if self.spinning else ''}"


class Session(Protocol):
    """A loaded graph. Implementations do not inherit from this class: the seam is these names, not shared code."""

    @property
    def name(self) -> str:
        """Which running form this is, e.g. ``onnxruntime-portable``; goes into every measurement."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that `run` takes, without the gates; None in a shape is free."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that `run` returns, all of them."""

    @property
    def threads(self) -> int:
        """Threads inside one operator."""

    @property
    def maps_weights(self) -> bool:
        """Whether the session has its own files, so that the bundle's contents may be dropped."""

    def run(self, inputs: Mapping[str, Array], gates: Gates) -> dict[str, Array]:
        """Run one subnet on one batch; safe to call from several threads at once.

        Args:
            inputs: Every input by name, in the dtype and shape of `inputs`.
            gates: The subnet to run.

        Returns:
            Every output by name; the arrays belong to the caller.

        Raises:
            InputError: A tensor is missing, unknown, or of the wrong dtype or shape.
            GateError: The gates belong to another space.
            BackendError: The library failed, or the session is closed.
            ResourceError: There is not enough memory.
        """

    def prefer(self, gates: Gates) -> None:
        """Say that this subnet is the active one: it is made as quick as can be, in the background.

        Raises:
            GateError: The gates belong to another space.
        """

    def hold(self, subnets: Sequence[Gates]) -> AbstractContextManager[None]:
        """Have these subnets as quick as can be while the block runs, e.g. to measure them; ready when it begins.

        Raises:
            GateError: The gates belong to another space.
        """

    def in_parts(self) -> SessionParts | None:
        """The same graph in parts, for subnets that share beginnings; None where it cannot be cut, or not now."""

    def close(self) -> None:
        """Give the memory back. Runs that have begun finish; later ones raise `BackendError`. Twice is fine."""


class SharedFeatures(Protocol):
    """What beginnings of subnets came to on one batch; whoever keeps them decides for how long."""

    def get(self, beginning: Beginning) -> Array | None:
        """What a beginning came to, None where it is not known any more. Nobody changes it."""

    def put(self, beginning: Beginning, value: Array) -> None:
        """Keep what a beginning came to."""


class SessionParts(Protocol):
    """A loaded graph in parts; the memory of its sessions goes when it does. Not thread-safe."""

    def run(self, inputs: Mapping[str, Array], gates: Gates, features: SharedFeatures) -> dict[str, Array]:
        """As `Session.run` with the same result, but what `features` knows of this batch is not computed again.

        Args:
            inputs: Every input by name, in the dtype and shape of the session's `inputs`.
            gates: The subnet to run.
            features: Of exactly these inputs; what is computed is put there.
        """


class RefusedError(BackendError):
    """A graph cannot be prepared on this machine, and would not be at a second try."""


class DamagedError(BackendError):
    """A prepared folder is not what its record says; making it again mends that."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """What the leaf kernels of one decision take in one run at batch 1."""

    us: float = 0.0
    """Microseconds inside the kernels, each in its quickest run, what the profiler itself takes there included."""

    count: int = 0
    """How many there are; each costs the library a little more than what it spends inside."""

    weight_bytes: int = 0
    """Constants that they read."""

    live_bytes: int = 0
    """The most that is allocated when one of them has run: activations that are alive, and constants that were packed
    anew when the session was made."""


@dataclass(frozen=True, slots=True)
class KernelProfile:
    """Where time and memory of some subnets go, from profiled sessions."""

    vectors: tuple[Gates, ...]
    """The subnets that were profiled."""

    base: tuple[Kernels, ...]
    """Per vector: the kernels outside every decision point."""

    groups: tuple[tuple[Kernels, ...], ...]
    """Per vector and group: the kernels of that decision; none where the group is inactive."""

    alone: bool = False
    """Whether each subnet was profiled in a session of its own, which it has beside the gated one."""


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Raise `InputError` unless `inputs` holds exactly the tensors of `specs`, in their dtype and shape."""
    names = [spec.name for spec in specs]
    if set(inputs) != set(names):
        raise InputError(f"the model takes the inputs {', '.join(names)}, got {', '.join(map(str, inputs)) or 'none'}")
    for spec in specs:
        _check_tensor(spec, inputs[spec.name])


def _check_tensor(spec: TensorSpec, tensor: Array) -> None:
    if not isinstance(tensor, np.ndarray):
        raise InputError(f"input {spec.name!r} is a {type(tensor).__name__}", hint="give a numpy array")
    if tensor.dtype.name != spec.dtype:
        raise InputError(f"input {spec.name!r} is {tensor.dtype.name}", hint=f"give {spec.dtype}")
    fits = len(tensor.shape) == len(spec.shape) and all(
        size >= 1 and want in (None, size) for want, size in zip(spec.shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("N" if want is None else str(want) for want in spec.shape)
        raise InputError(f"input {spec.name!r} has the shape {tensor.shape}", hint=f"the model takes ({wanted})")


def check_gates(space: GateSpace, gates: Gates) -> None:
    """Raise `GateError` unless `gates` is a point of `space`."""
    if gates.space is not space and gates.space != space:
        raise GateError(
            f"the gates {gates} belong to another model", hint=f"use gates of this one, like {space.default}"
        )


def relative_difference(wanted: Array, found: Array) -> float:
    """Largest difference of two outputs over the largest magnitude; inf where shapes differ or one is not finite."""
    if wanted.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(wanted - found).max(initial=0.0)) / (float(np.abs(wanted).max(initial=0.0)) or 1.0)


def random_inputs(specs: Sequence[TensorSpec], *, seed: int, batch: int = 1) -> dict[str, Array]:
    """Standard normal tensors (float) or zeros (integer) that fit `specs`, every free size set to `batch`."""
    rng = np.random.default_rng(whole("seed", seed))
    made: dict[str, Array] = {}
    for spec in specs:
        shape = tuple(batch if size is None else size for size in spec.shape)
        dtype = np.dtype(spec.dtype)
        made[spec.name] = rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
    return made
