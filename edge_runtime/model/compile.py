"""The quickest form of a bundle that is to be had on this machine: what was prepared before, prepared now, or portable.

Nothing here can fail for want of a cache: what cannot be kept, made or trusted is done without, and the note says why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from edge_runtime import sense
from edge_runtime.backends import compile_bundle, open_compiled, open_session
from edge_runtime.backends.base import Session, SessionOptions
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, StateError
from edge_runtime.state import StateDir

__all__ = ["open_quickest"]

FORMAT = 1
"""Of the prepared folders; another one is made again."""

BASE_BYTES, PER_WEIGHT_BYTE = 120 << 20, 3.5
"""Memory that preparing takes at its peak: the libraries, and several copies of the weights."""


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
    except (BackendError, StateError) as error:
        return open_session(bundle, options), f"portable: {error.message}"


def _compiled(bundle: Bundle, options: SessionOptions, state: StateDir, name: str, key: str) -> tuple[Session, str]:
    """What is kept, or what is made in its place where it is missing or cannot be used."""
    for last in (False, True):
        folder = state.folder(name, lambda beside: _compile(bundle, options, beside, key))
        if folder is None:
            break
        try:
            session = open_compiled(bundle, options, folder, key=key)
        except BackendError:
            state.discard(name)
            if last:
                raise
            continue
        return session, f"{session.name}, prepared on this machine"
    raise StateError("there is no state directory to prepare it in")


def _key(bundle: Bundle, options: SessionOptions, versions: Mapping[str, str]) -> tuple[str, str]:
    """Folder name and full key: everything that the prepared form depends on."""
    parts = [FORMAT, bundle.digest, options.key(), sense.cpu_features_key(), sorted(versions.items())]
    key = json.dumps(parts)
    return f"compiled-{hashlib.sha256(key.encode()).hexdigest()[:24]}", key


def _compile(bundle: Bundle, options: SessionOptions, folder: Path, key: str) -> None:
    needed = int(BASE_BYTES + PER_WEIGHT_BYTE * len(bundle.weights))
    available = sense.memory_available_bytes()
    if not isinstance(available, sense.Unknown) and available < needed:
        raise BackendError(f"preparing takes about {needed >> 20} MiB, {available >> 20} MiB are free")
    compile_bundle(bundle, options, folder, key=key)
