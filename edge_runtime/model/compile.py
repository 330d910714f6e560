"""The quickest form of a bundle that is to be had on this machine: what was prepared before, prepared now, or portable.

Nothing here can fail for want of a cache: what cannot be kept, made or trusted is done without, and the note says why.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import __version__, sense
from edge_runtime.backends import (
    DamagedError,
    RefusedError,
    compile_bundle,
    is_prepared,
    open_compiled,
    open_session,
    runtime_build,
)
from edge_runtime.backends.base import Session, SessionOptions, random_inputs
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, ResourceError, StateError
from edge_runtime.state import StateDir

if TYPE_CHECKING:
    from edge_runtime.backends.onnx.compiled import CompiledSession

__all__ = ["open_quickest"]

FORMAT = 6
"""Of the prepared folders; another one is made again."""

RETRY_SECONDS = 600.0
"""After so long what could not be prepared is tried again; another version of anything tries at once."""

BASE_BYTES, PER_WEIGHT_BYTE = 100 << 20, 6.0
"""Memory that preparing takes at its peak: the libraries, and several copies of the weights. Measured: 110 MiB with 4.0
MiB of weights, 178 with 15.7, 184 with 17.6."""

DECODED = 2.0
"""Times as much for weights of which some are stored in 8 bits, as these become float32: 224 MiB with 13.4 MiB."""


def open_quickest(
    bundle: Bundle, options: SessionOptions, state: StateDir, versions: Mapping[str, str]
) -> tuple[Session, str]:
    """A session of the bundle, and why it has the form that it has.

    Raises:
        BundleError: The graph is refused.
        BackendError: onnxruntime is missing or lacks a provider.
    """
    name, key = _key(bundle, options, versions)
    try:
        return _compiled(bundle, options, state, name, key)
    except (BackendError, StateError, ResourceError) as error:
        return open_session(bundle, options), f"portable: {error.message[:300]}"


def _compiled(bundle: Bundle, options: SessionOptions, state: StateDir, name: str, key: str) -> tuple[Session, str]:
    """What is kept, or what is made in its place where it is missing or damaged."""
    _check_refusal(state, name)
    try:
        session = _opened(bundle, options, state, name, key, usable=Path.is_dir)  # its bytes are judged as it is opened
    except DamagedError:
        session = _opened(bundle, options, state, name, key, usable=lambda folder: _usable(folder, key))
    try:
        session.run(random_inputs(session.inputs, seed=0), bundle.manifest.space.default)
    except BaseException:
        session.close()
        raise
    return session, f"{session.name}, prepared on this machine" + (f" ({session.note})" if session.note else "")


def _opened(
    bundle: Bundle, options: SessionOptions, state: StateDir, name: str, key: str, *, usable: Callable[[Path], bool]
) -> CompiledSession:
    folder = state.folder(name, lambda beside: _compile(bundle, options, beside, state, name, key), usable=usable)
    if folder is None:
        raise StateError("there is no state directory to prepare it in")
    return open_compiled(bundle, options, folder, key=key)


def _usable(folder: Path, key: str) -> bool:
    return folder.is_dir() and is_prepared(folder, key=key)


def _refusal(name: str) -> str:
    return f"{name.replace('compiled', 'refused')}.json"


def _check_refusal(state: StateDir, name: str) -> None:
    """What failed a short while ago is not tried again at every start."""
    refusal = state.read_json(_refusal(name))
    if isinstance(refusal, dict) and isinstance(refusal.get("at"), (int, float)):
        age_s = time.time() - refusal["at"]
        if 0 <= age_s < RETRY_SECONDS:
            raise BackendError(f"{str(refusal.get('reason'))[:300]} (tried {age_s / 60:.0f} minutes ago)")


def _key(bundle: Bundle, options: SessionOptions, versions: Mapping[str, str]) -> tuple[str, str]:
    """Folder name and full key: everything that the prepared form depends on."""
    parts = [
        FORMAT,
        __version__,
        runtime_build(),
        bundle.digest,
        options.key(),
        sense.cpu_features_key(),
        sorted(versions.items()),
    ]
    key = json.dumps(parts)
    return f"compiled-{hashlib.sha256(key.encode()).hexdigest()[:24]}", key


def _compile(bundle: Bundle, options: SessionOptions, folder: Path, state: StateDir, name: str, key: str) -> None:
    decoded = DECODED if b"DequantizeLinear" in bundle.model_bytes else 1.0
    needed = int(BASE_BYTES + PER_WEIGHT_BYTE * decoded * len(bundle.weights))
    available = sense.memory_available_bytes()
    if not isinstance(available, sense.Unknown) and available < needed:
        raise BackendError(f"preparing takes about {needed >> 20} MiB, {available >> 20} MiB are free")
    try:
        compile_bundle(bundle, options, folder, key=key)
    except RefusedError as error:
        with contextlib.suppress(StateError):
            state.write_json(_refusal(name), {"reason": error.message, "at": time.time()})
        raise
