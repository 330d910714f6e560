"""A checked bundle in memory, and the two ways between it and the disk. Runs no model, imports no runtime."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from dataclasses import dataclass, field, replace

from edge_runtime.bundle.files import FILE_NAMES, MANIFEST, MODEL, WEIGHTS, Files, open_files
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.schema import FileEntry, Sealed, read_manifest, seal_manifest
from edge_runtime.bundle.stored_zip import zip_stored
from edge_runtime.errors import BundleError, StateError

__all__ = ["Bundle", "write_bundle"]

MAX_FAULTS = 20
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every byte was checked against its manifest. The graph itself is judged when it is opened."""

    manifest: Manifest
    """What the model is."""

    digest: str
    """sha256 in hex over the manifest, which holds the sha256 of the other files: names this exact bundle."""

    model_bytes: bytes = field(repr=False)
    """model.onnx; its large tensors point into `weights`."""

    weights: bytes = field(repr=False)
    """weights.bin."""

    source: str
    """The path that it was read from, for messages."""

    @classmethod
    def read(cls, path: PathLike) -> Bundle:
        """Read and check a bundle directory or `.nnf` file.

        Raises:
            BundleError: It is missing, damaged, hostile or of another version; `faults` lists everything found.
        """
        source = os.fspath(path)
        with open_files(source) as files:
            faults = list(files.faults)
            sealed = _read_sealed(files, faults)
            contents = {name: _read_listed(files, name, sealed, faults) for name in (MODEL, WEIGHTS) if name in files}
            if sealed:
                faults += [f"{entry.path[:60]!r} is listed, but not a file of a bundle" for entry in _strangers(sealed)]
        if faults or sealed is None:
            more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
            raise BundleError(f"{source!r} is not a valid bundle", faults=(*faults[:MAX_FAULTS], *more))
        return cls(sealed.manifest, sealed.digest, contents[MODEL], contents[WEIGHTS], source)

    def without_contents(self) -> Bundle:
        """The same bundle without graph and weights, for who needs them no more: they may be most of a process."""
        return replace(self, model_bytes=b"", weights=b"")


def write_bundle(path: PathLike, manifest: Manifest, model_bytes: bytes, weights: bytes) -> Bundle:
    """Write a bundle, a zip where `path` ends in ``.nnf`` and a directory elsewhere; equal content gives equal bytes.

    It is written beside, read back, and renamed: `path` holds the old bundle or the new one. (A directory that is
    replaced is missing for the moment between two renames.)

    Raises:
        BundleError: The content breaks a limit of the format, or `path` holds something that is not a bundle.
        StateError: The disk refused.
    """
    target = os.fspath(path).rstrip(os.sep)
    entries = (FileEntry.of(MODEL, model_bytes), FileEntry.of(WEIGHTS, weights))
    files = {MANIFEST: seal_manifest(manifest, entries), MODEL: model_bytes, WEIGHTS: weights}
    beside = f"{target}.{secrets.token_hex(4)}.tmp"
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(_discard, beside)
            if target.endswith(".nnf"):
                _write_file(beside, zip_stored(files))
            else:
                os.mkdir(beside)
                for name, content in files.items():
                    _write_file(os.path.join(beside, name), content)
            bundle = Bundle.read(beside)
            _replace(beside, target)
    except OSError as error:
        raise StateError(f"bundle {target!r} cannot be written: {error.strerror or error}") from error
    return Bundle(bundle.manifest, bundle.digest, model_bytes, weights, target)


def _read_sealed(files: Files, faults: list[str]) -> Sealed | None:
    if MANIFEST not in files:
        return None
    try:
        sealed = read_manifest(files.read(MANIFEST))
    except BundleError as error:
        faults.extend(error.faults or (str(error),))
        return None
    faults.extend(sealed.faults)
    return sealed


def _read_listed(files: Files, name: str, sealed: Sealed | None, faults: list[str]) -> bytes:
    """The content of `name` where its size and sha256 are as listed; else a fault. Size first: it costs no read."""
    entries = [entry for entry in sealed.files if entry.path == name] if sealed else []
    if not sealed or len(entries) != 1:
        faults.extend([f"{name} is listed {len(entries)} times"] if sealed else ())
        return b""
    size_bytes = files.size_bytes(name)
    if size_bytes != entries[0].size_bytes:
        faults.append(f"{name} has {size_bytes} bytes, the manifest says {entries[0].size_bytes}")
        return b""
    try:
        content = files.read(name)
    except BundleError as error:
        faults.append(error.message)
        return b""
    if FileEntry.of(name, content) != entries[0]:
        faults.append(f"{name} does not have the sha256 that the manifest gives")
    return content


def _strangers(sealed: Sealed) -> list[FileEntry]:
    return [entry for entry in sealed.files if entry.path not in (MODEL, WEIGHTS)]


def _write_file(path: str, content: bytes) -> None:
    with open(path, "xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _replace(beside: str, target: str) -> None:
    """Put `beside` in the place of `target`, and make the exchange last."""
    if os.path.isdir(target):
        _replace_directory(beside, target)
    else:
        os.replace(beside, target)
    parent = os.open(os.path.dirname(target) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _replace_directory(beside: str, target: str) -> None:
    if not set(os.listdir(target)) <= set(FILE_NAMES):
        raise BundleError(f"{target!r} is a directory that is not a bundle", hint="name a new path")
    old = f"{target}.{secrets.token_hex(4)}.old"
    os.rename(target, old)
    try:
        os.rename(beside, target)
    except OSError:
        os.rename(old, target)
        raise
    _discard(old)


def _discard(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
