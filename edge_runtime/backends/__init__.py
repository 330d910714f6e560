"""The only door to the native inference libraries. Each function imports its library when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.backends.base import (
    CODES_TOLERANCE,
    Array,
    DamagedError,
    KernelProfile,
    Kernels,
    RefusedError,
    Session,
    SessionOptions,
)
from edge_runtime.bundle import Bundle
from edge_runtime.gates import Gates

if TYPE_CHECKING:
    from edge_runtime.backends.onnx.compiled import CompiledSession
    from edge_runtime.backends.onnx.static import StaticSession

__all__ = [
    "CODES_TOLERANCE",
    "Array",
    "DamagedError",
    "KernelProfile",
    "Kernels",
    "RefusedError",
    "Session",
    "SessionOptions",
    "check_graph",
    "compile_bundle",
    "export_subnet",
    "is_prepared",
    "open_compiled",
    "open_session",
    "open_static",
    "profile_kernels",
    "runtime_build",
    "runtime_versions",
]


def open_session(bundle: Bundle, options: SessionOptions | None = None) -> Session:
    """Check the bundle's graph and load it as a gated session.

    Raises:
        BundleError: The graph is not one that the format allows, or the library refuses it.
        BackendError: onnxruntime is not installed, or lacks a provider that was asked for.
    """
    from edge_runtime.backends.onnx.session import open_portable

    return open_portable(bundle, options or SessionOptions())


def compile_bundle(bundle: Bundle, options: SessionOptions, folder: Path, *, key: str, seconds: float = 300.0) -> None:
    """Prepare the bundle's graph for this machine in a child process; the files are in the empty `folder` afterwards.

    Args:
        bundle: Read from a path that is still there.
        options: What sessions will be opened with.
        folder: Existing and empty.
        key: Names everything that the result depends on; `open_compiled` wants the same.
        seconds: The child is ended after so long.

    Raises:
        RefusedError: It cannot be done, or took too long; says why. The portable form serves as before.
        BackendError: It was not done this time: the child was killed, or could not be started.
    """
    from edge_runtime.backends.onnx.compile import compile_bundle as compile_

    compile_(bundle, options, folder, key=key, seconds=seconds)


def open_compiled(bundle: Bundle, options: SessionOptions, folder: Path, *, key: str) -> CompiledSession:
    """Open what `compile_bundle` made. The graph and its weights are not looked at: they were, when it was made.

    Raises:
        DamagedError: The folder is incomplete, damaged or of another key.
        BackendError: It belongs to another user, or cannot be opened.
    """
    from edge_runtime.backends.onnx.compile import open_compiled as open_

    return open_(bundle, options, folder, key=key)


def is_prepared(folder: Path, *, key: str) -> bool:
    """Whether a folder is what `compile_bundle` made for this key, every byte of it; otherwise it may be made again.

    Raises:
        BackendError: That cannot be told: it belongs to another user, or cannot be read now.
    """
    from edge_runtime.backends.onnx.compile import read_record

    try:
        read_record(folder, key)
    except DamagedError:
        return False
    return True


def open_static(model_bytes: bytes, options: SessionOptions | None = None, *, weights: bytes = b"") -> StaticSession:
    """Load a plain ONNX graph without gates (the oracle's static export) at full optimisation.

    `weights` is the content of its external file ``weights.bin``, where it has one. Raises as `open_session`.
    """
    from edge_runtime.backends.onnx.static import open_static as load

    return load(model_bytes, options or SessionOptions(), weights=weights)


def export_subnet(bundle: Bundle, gates: Gates) -> bytes:
    """One subnet as a plain static ONNX model with embedded weights, compared with the gated graph on real runs.

    Raises:
        BundleError: The bundle's graph is refused.
        BackendError: The result differs, or cannot be made.
    """
    from edge_runtime.backends.onnx.export import export_subnet as export

    return export(bundle, gates)


def profile_kernels(
    bundle: Bundle,
    options: SessionOptions,
    inputs: Mapping[str, Array],
    vectors: Sequence[Gates],
    *,
    rounds: int,
    scratch: Path,
    session: Session | None = None,
    seconds: float = float("inf"),
) -> KernelProfile:
    """Run `vectors` in profiled sessions, interleaved, and attribute every leaf kernel to its decision point.

    `scratch` is an existing directory that takes the profile while it is written; nothing is left in it. A compiled
    `session` is profiled in the form that serves, each vector alone where it makes such sessions; for others the
    portable graph is. After `seconds` no further round begins, once there were three.
    Raises as `open_session`.
    """
    from edge_runtime.backends.onnx.profile import profile_kernels as profile

    return profile(bundle, options, inputs, vectors, rounds=rounds, scratch=scratch, session=session, seconds=seconds)


def check_graph(bundle: Bundle) -> None:
    """Raise `BundleError` unless the bundle's graph is one that the format allows; loads onnx, not onnxruntime."""
    from edge_runtime.backends.onnx.check import check_graph as check

    check(bundle)


def runtime_build() -> str:
    """Which build of the inference library this is: wheels of one version differ in compiler and providers."""
    from edge_runtime.backends.onnx.telemetry import import_onnxruntime

    return str(import_onnxruntime().get_build_info())


def runtime_versions() -> dict[str, str]:
    """Versions of the libraries that run a model, for reports and cache keys; ``absent`` where one is missing."""
    from importlib import metadata

    from edge_runtime.backends.onnx.telemetry import import_onnxruntime
    from edge_runtime.errors import BackendError

    try:
        # The module, not the distribution: onnxruntime-gpu and vendor wheels provide the same module.
        onnxruntime = str(import_onnxruntime().__version__)
    except BackendError:
        onnxruntime = "absent"
    versions = {"onnxruntime": onnxruntime}
    for name in ("numpy", "onnx"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions
